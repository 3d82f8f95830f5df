"""What only GPUs can show: NCCL, the loss scaler, batch normalisation over devices."""

import parity
import pytest
import torch
from ranks import together

from imgsynth.callbacks import Checkpoint
from imgsynth.data import Digits

pytestmark = pytest.mark.gpu

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@two_gpus
def test_two_gpus_end_with_the_same_bits(tmp_path):
    ranks = together(tmp_path, parity.on_ranks, "gpu", backend="nccl")
    for name in parity.CASES:
        first, second = (rank[name]["state"] for rank in ranks)
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert ranks[0][name]["images"] == parity.UPDATES * parity.images_of_update(name)
        # not compared with one process: a GPU draws other random numbers than a processor


@two_gpus
def test_synchronised_batch_norm_has_the_same_statistics_on_both(tmp_path):
    first, second = together(tmp_path, parity.synchronised, str(tmp_path), backend="nccl")
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("name", parity.METHODS)
def test_half_precision_stays_near_full_precision_and_resumes_exactly(tmp_path, name, precision):
    def fit(folder, updates, **options):
        torch.manual_seed(5)
        method = parity.METHODS[name]()
        resumed = {"ckpt_path": options.pop("ckpt_path", None), "weights_only": True}
        training = parity.trainer(
            updates,
            1,
            accelerator="gpu",
            default_root_dir=folder,
            callbacks=[Checkpoint()],
            **options,
        )
        training.fit(method, Digits(batch_size=parity.BATCH, seed=3), **resumed)
        saved = max((folder / "checkpoints").iterdir())
        return {k: v.cpu() for k, v in method.state_dict().items()}, saved

    full, _ = fit(tmp_path / "full", 8)
    half, _ = fit(tmp_path / "half", 8, precision=precision)
    _, saved = fit(tmp_path / "cut", 4, precision=precision)
    resumed, _ = fit(tmp_path / "cut", 8, precision=precision, ckpt_path=saved)
    for key, tensor in full.items():
        torch.testing.assert_close(half[key], tensor, rtol=0.05, atol=0.02, msg=key)
        assert torch.equal(resumed[key], half[key]), key
