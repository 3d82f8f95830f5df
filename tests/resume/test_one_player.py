"""A method with one player, killed and resumed, ends like an undisturbed one."""

import signal
import time

import pytest
import torch
from processes import Command, imgsynth

from imgsynth.loading import find_checkpoint
from imgsynth.loggers.record import read_rows
from imgsynth.testing.contract import first_difference

SHARED = """
seed: 3
images: 2400
trainer: {accelerator: cpu, log_every_n_steps: 3, accumulate_grad_batches: 2}
checkpoint: {every: 320, keep: 0}
samples: {every: 960}
"""

METHODS = {
    "Classifier": """
data: {class_path: imgsynth.data.Digits, init_args: {batch_size: 16}}
model:
  class_path: imgsynth.methods.Classifier
  init_args:
    network: {class_path: imgsynth.networks.SmallCNN, init_args: {width: 4, num_features: 8}}
    augment: {class_path: imgsynth.augment.RandomTranslation}
    schedule: {class_path: imgsynth.optim.CosineDecay, init_args: {warmup: 320}}
    label_smoothing: 0.1
""",
    "VAE": """
data: {class_path: imgsynth.data.Digits, init_args: {batch_size: 16, binarise: true}}
model:
  class_path: imgsynth.methods.VAE
  init_args:
    encoder: {class_path: imgsynth.networks.MLPEncoder, init_args: {latent_dim: 4, width: 8}}
    decoder: {class_path: imgsynth.networks.MLPDecoder, init_args: {latent_dim: 4, width: 8}}
    likelihood: {class_path: imgsynth.likelihoods.OptimalGaussian}
    corruption: {class_path: imgsynth.augment.RandomTranslation}
    kl_warmup: 1600
    free_bits: 0.05
""",
    "IWAE": """
data: {class_path: imgsynth.data.Digits, init_args: {batch_size: 16}}
model:
  class_path: imgsynth.methods.IWAE
  init_args:
    encoder: {class_path: imgsynth.networks.MLPEncoder, init_args: {latent_dim: 4, width: 8}}
    decoder: {class_path: imgsynth.networks.MLPDecoder, init_args: {latent_dim: 4, width: 8}}
    likelihood: {class_path: imgsynth.likelihoods.DiscretisedLogistic}
    num_samples: 3
    one_backward: true
""",
    "VQVAE": """
data: {class_path: imgsynth.data.Digits, init_args: {batch_size: 16}}
model:
  class_path: imgsynth.methods.VQVAE
  init_args:
    encoder:
      class_path: imgsynth.networks.SpatialEncoder
      init_args: {code_dim: 4, downsamplings: 1, width: 8}
    quantizer:
      class_path: imgsynth.networks.VectorQuantizer
      init_args: {num_codes: 8, code_dim: 4}
    decoder:
      class_path: imgsynth.networks.SpatialDecoder
      init_args: {code_dim: 4, downsamplings: 1, width: 8}
    prior:
      class_path: imgsynth.networks.CodeTransformer
      init_args: {num_codes: 8, num_tokens: 16, width: 8, depth: 1, heads: 2}
""",
}


def everything(run):
    """All that the last checkpoint holds but Lightning's own counters, and the rows."""
    checkpoint = torch.load(find_checkpoint(run), weights_only=True)
    kept = ("state_dict", "optimizer_states", "imgsynth", "Digits")
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(run)]
    return {k: checkpoint[k] for k in kept}, rows


@pytest.mark.slow
@pytest.mark.parametrize("images", [1000, 1400])  # an epoch ends at 1296; rows are at each 96
@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path, name, images):
    (tmp_path / "config.yaml").write_text(SHARED + METHODS[name])
    imgsynth(tmp_path, "fit", "-c", "config.yaml", "--name", "whole")
    run = tmp_path / "runs" / "run"
    with Command(tmp_path, "fit", "-c", "config.yaml", "--name", "run") as command:
        deadline = time.monotonic() + 100
        while not (run / "record.jsonl").exists() or read_rows(run)[-1]["images"] < images:
            assert command.process.is_alive(), command.text()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        command.kill(signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL
    imgsynth(tmp_path, "resume", "runs/run")
    (state, rows), (expected, expected_rows) = everything(run), everything(run.with_name("whole"))
    assert first_difference(expected, state) is None
    assert rows == expected_rows
    assert any("val/accuracy" in row or "val/elbo" in row or "val/usage" in row for row in rows)
