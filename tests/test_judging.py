"""The judge of a data set: shipped, kept or trained; apart from the caller; by one process."""

import os
from contextlib import contextmanager

import pytest
import torch
from classifying import SMALL, Forgetful, Stripes, judge_stripes, trainer, weights
from filelock import FileLock
from ranks import context

import imgsynth
from imgsynth import judging
from imgsynth.augment import RandomTranslation
from imgsynth.callbacks import Checkpoint
from imgsynth.data import Digits
from imgsynth.judging import export, judge
from imgsynth.methods import Classifier, HingeGAN
from imgsynth.metrics.classifier import ClassifierExtractor
from imgsynth.networks import MLPDiscriminator, MLPGenerator, ResNet18, SmallCNN

# -- which one ------------------------------------------------------------------------------------


def test_the_shipped_judge_is_there_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "_train", None)
    found = imgsynth.judge(Digits(batch_size=7, transforms=[RandomTranslation(1)]), device="cpu")
    assert found.identity() == ClassifierExtractor.load(judging.SHIPPED / "digits.pt").identity()


@pytest.mark.parametrize(
    ("data", "options"),
    [(Digits(limit=200), {}), (Digits(size=9), {}), (Digits(), SMALL)],
)
def test_other_images_or_another_length_need_another_judge(tmp_path, monkeypatch, data, options):
    def train(*_):
        raise InterruptedError

    monkeypatch.setattr(judging, "_train", train)
    with pytest.raises(InterruptedError):
        judge(data, folder=tmp_path, **options)


def test_a_judge_is_trained_once_and_then_kept(tmp_path, monkeypatch, capsys):
    data = Stripes()
    first = judge(data, folder=tmp_path, **SMALL)
    assert first.accuracy > 0.9
    assert first.num_heldout == 20  # a tenth, as there is no other split
    assert "Training a classifier of Stripes (180 images, 2 classes)" in capsys.readouterr().err
    monkeypatch.setattr(judging, "_train", None)
    again = judge(Stripes(batch_size=3), folder=tmp_path, **SMALL)
    assert again.identity() == first.identity()
    assert len(list(tmp_path.glob("*.pt"))) == 1


def test_the_cache_is_in_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("IMGSYNTH_CACHE", str(tmp_path))
    judge(Stripes(), **SMALL)
    assert len(list((tmp_path / "judges").glob("*.pt"))) == 1


def test_the_key_holds_all_that_the_judge_depends_on(tmp_path, monkeypatch):
    class Nothing:
        def save(self, path):
            path.touch()

    monkeypatch.setattr(judging, "_train", lambda *_: Nothing())
    monkeypatch.setattr(ClassifierExtractor, "load", lambda *_, **__: torch.nn.Identity())
    variants = [
        (Stripes(), {}),
        (Stripes(num=210), {}),
        (Stripes(splits=("train", "test")), {}),
        (Stripes(limit=100), {}),
        (Stripes(), {"images": 513}),
        (Stripes(), {"network": SmallCNN((1, 8, 8), 2, width=8)}),
        (Stripes(), {"network": ResNet18((1, 8, 8), 2, width=8)}),
    ]
    for data, options in variants:
        judge(data, folder=tmp_path, **{**SMALL, **options})
    assert len(list(tmp_path.glob("*.pt"))) == len(variants)
    monkeypatch.setattr(judging, "VERSION", 99)
    judge(Stripes(), folder=tmp_path, **SMALL)
    assert len(list(tmp_path.glob("*.pt"))) == len(variants) + 1


def test_large_images_get_a_residual_network():
    class Shape:
        num_classes = 3

        def __init__(self, side):
            self.image_shape = (3, side, side + 8)

    assert isinstance(judging._default_network(Shape(64)), SmallCNN)
    assert isinstance(judging._default_network(Shape(65)), ResNet18)


def test_the_length_is_twenty_passes_within_bounds():
    class Size:
        def __init__(self, num):
            self.num = num

        def num_images(self, _):
            return self.num

    lengths = [judging._length(Size(num)) for num in (10, 5_000, 10**6)]
    assert lengths == [20_000, 100_000, 1_000_000]


# -- apart from the caller ------------------------------------------------------------------------


@contextmanager
def _inference():
    with torch.inference_mode(), torch.autocast("cpu"):
        yield


@pytest.mark.parametrize("surroundings", [torch.no_grad, _inference])
def test_the_judge_is_the_same_whatever_the_caller_does_and_the_caller_notices_nothing(
    tmp_path, monkeypatch, surroundings
):
    plain = judge(Stripes(), folder=tmp_path / "plain", **SMALL)
    data = Stripes(seed=1, batch_size=5, transforms=[RandomTranslation(2)])
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    with surroundings():
        modes = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        found = judge(data, folder=tmp_path / "again", **SMALL)
        assert (torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")) == modes
        assert not torch.is_grad_enabled()
    assert found.identity() == plain.identity()
    assert torch.equal(before, torch.random.get_rng_state())
    assert os.environ["PL_GLOBAL_SEED"] == "7"
    assert (data.batch_size, data.seed, len(data.transforms), data.trainer) == (5, 1, 1, None)


def test_a_network_given_is_trained_from_scratch_whatever_its_weights_and_the_seed(
    tmp_path, monkeypatch
):
    found = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        torch.manual_seed(int(seed))
        network = Forgetful((1, 8, 8), 2, width=4, num_features=8)
        before = [p.clone() for p in network.parameters()]
        found.append(judge(Stripes(), network=network, folder=tmp_path / seed, **SMALL))
        assert all(torch.equal(p, q) for p, q in zip(before, network.parameters(), strict=True))
    assert weights(found[0]) == weights(found[1])
    assert found[0].num_features == 8


def test_the_averaged_weights_judge(tmp_path, monkeypatch):
    taken = []
    measured = judging._measured

    def noted(method, *rest):
        taken.append(method.network is method.ema["network"])
        return measured(method, *rest)

    monkeypatch.setattr(judging, "_measured", noted)
    judge(Stripes(), folder=tmp_path, **SMALL)
    assert taken == [True]


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "test", "val")])
def test_the_accuracy_is_that_of_the_held_out_split(tmp_path, splits):
    data = Stripes(splits=splits, num=128)
    found = judge(data, folder=tmp_path, **SMALL)
    images, labels = next(data.reference(splits[-1], 128))
    right = (found(images)[1].argmax(1) == labels).double().mean().item()
    assert (found.accuracy, found.num_heldout) == (right, 128)


def test_images_of_16_bits_are_learnt_too(tmp_path):
    found = judge(Stripes(dtype=torch.uint16), folder=tmp_path, **SMALL)
    assert found.accuracy > 0.9


@pytest.mark.slow
def test_of_several_processes_one_trains(tmp_path, monkeypatch):
    answers = context.Queue()
    started = [
        context.Process(target=judge_stripes, args=(str(tmp_path), answers)) for _ in range(3)
    ]
    for process in started:
        process.start()
    found = {answers.get(timeout=120) for _ in started}
    for process in started:
        process.join()
    assert len(found) == len(list(tmp_path.glob("trained-by-*"))) == 1
    (path,) = tmp_path.glob("*.pt")
    assert weights(ClassifierExtractor.load(path)) in found


def test_a_wait_for_another_process_is_told_and_then_nothing_is_trained(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(judging, "_SECONDS_UNTIL_TOLD", 0.01)
    judge(Stripes(), folder=tmp_path, **SMALL)
    (path,) = tmp_path.glob("*.pt")
    elsewhere = path.rename(tmp_path / "elsewhere")
    other = FileLock(path.with_suffix(".lock"))
    other.acquire()

    def finish(*_, **__):  # what the other process does while this one waits
        elsewhere.rename(path)
        other.release()

    monkeypatch.setattr(judging.tqdm, "write", finish)
    monkeypatch.setattr(judging, "_train", None)
    assert judge(Stripes(), folder=tmp_path, **SMALL).accuracy > 0.9
    assert not elsewhere.exists()


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (Stripes(classes=0), "Stripes has no labels.* swd, which needs none"),
        (Stripes(classes=1), "Stripes has one class only"),
    ],
)
def test_data_that_no_classifier_can_judge_is_refused_with_what_else_there_is(data, says):
    with pytest.raises(ValueError, match=says):
        judge(data)


class Custom(torch.nn.Module):
    pass


def test_networks_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 8x8 pixels, got 7x7"):
        judge(Digits(size=7), folder=tmp_path)
    with pytest.raises(ValueError, match="Custom does not record how it was built"):
        judge(Stripes(), network=Custom(), folder=tmp_path)
    with pytest.raises(ValueError, match="num_classes = 3, but the data has 2"):
        judge(Stripes(), network=SmallCNN((1, 8, 8), 3, width=4), folder=tmp_path, **SMALL)
    assert not list(tmp_path.glob("*.pt"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        OSError, match=r"cannot be written .*; name another one with \$IMGSYNTH_CACHE"
    ):
        judge(Stripes(), folder=tmp_path / "file" / "judges", **SMALL)


# -- from a run -----------------------------------------------------------------------------------


class TrainingDigits(Digits):
    """Digits without a test split."""

    splits = ("train",)


def test_a_run_becomes_a_judge_of_its_averaged_weights(tmp_path):
    data = Digits(batch_size=64, seed=1)
    network = SmallCNN((1, 8, 8), 10, width=4, num_features=8)
    method = Classifier(network, ema_half_life=500, ema_ramp_up=None)
    trainer(3, callbacks=[Checkpoint()], default_root_dir=tmp_path / "run").fit(method, data)
    made = export(tmp_path / "run", data, tmp_path / "judge.pt")
    loaded = ClassifierExtractor.load(tmp_path / "judge.pt")
    assert loaded.identity() == made.identity()
    assert loaded.training_in_words == "192 images, exported"
    images, labels = next(data.reference("test", 500))
    logits = method.ema["network"](images / 127.5 - 1)
    torch.testing.assert_close(loaded(images)[1], logits, atol=1e-4, rtol=1e-4)
    assert loaded.accuracy == (loaded(images)[1].argmax(1) == labels).double().mean().item()
    with pytest.raises(ValueError, match="was trained on other images than Digits holds"):
        export(tmp_path / "run", Digits(limit=100), tmp_path / "judge.pt")
    with pytest.raises(ValueError, match="no images that were held out"):
        export(tmp_path / "run", TrainingDigits(), tmp_path / "judge.pt")


def test_a_run_of_another_method_is_refused(tmp_path, digits):
    run = trainer(1)
    run.fit(HingeGAN(MLPGenerator((1, 8, 8)), MLPDiscriminator((1, 8, 8))), digits)
    run.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match=r"Expected a run of Classifier, .* is of HingeGAN"):
        export(tmp_path / "run.ckpt", digits, tmp_path / "judge.pt")
