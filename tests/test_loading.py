import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

import imgsynth
from imgsynth.callbacks import Checkpoint, Length
from imgsynth.data import Arrays
from imgsynth.loading import find_checkpoint, read_checkpoint, trained_on, warm_start
from imgsynth.loggers import Record
from imgsynth.methods import LSGAN, HingeGAN
from imgsynth.networks import DCGANDiscriminator, DCGANGenerator, MLPDiscriminator, MLPGenerator


def make(cls=HingeGAN, width=4, num=10, **kwargs):
    return cls(
        MLPGenerator((1, 8, 8), num, width=width, latent_dim=4),
        MLPDiscriminator((1, 8, 8), num, width=width),
        **kwargs,
    )


def fit(method, data, folder):
    Trainer(
        accelerator="cpu",
        logger=Record(folder),
        callbacks=[Length(64), Checkpoint(every=32)],
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(method, data)
    return method


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A method trained for four updates in Python, and the folder of its run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return fit(make(), digits, folder), folder


def test_a_run_of_python_is_loaded_with_the_same_samples(trained):
    method, folder = trained
    loaded = imgsynth.load(folder)
    assert type(loaded) is HingeGAN
    assert not loaded.training
    assert (loaded.updates, loaded.images_seen, loaded.seed) == (4, 64, method.seed)
    for ema in (True, False):
        ours, theirs = (m.sample(12, seed=5, ema=ema) for m in (method, loaded))
        assert torch.equal(ours, theirs)


def test_a_run_folder_means_its_newest_checkpoint(trained):
    _, folder = trained
    assert find_checkpoint(folder).name == "images-000000000064.ckpt"
    assert find_checkpoint(folder / "checkpoints") == find_checkpoint(folder)
    older = folder / "checkpoints" / "images-000000000032.ckpt"
    assert imgsynth.load(older).updates == 2


def test_an_argument_given_replaces_the_recorded_one(trained):
    _, folder = trained
    loaded = imgsynth.load(folder, ema_half_life="3k")
    assert loaded._ema_half_life == 3000


class Plain(nn.Sequential):
    """Does not record how it was built."""

    def __init__(self):
        super().__init__(nn.Linear(4, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))


def test_an_argument_that_was_not_recorded_is_asked_for_by_name(digits, tmp_path):
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    method = fit(HingeGAN(Plain(), discriminator), digits, tmp_path)
    with pytest.raises(ValueError, match=r"'generator' was made of the class '.*Plain'.*pass it"):
        imgsynth.load(tmp_path)
    parts = {"generator": Plain(), "discriminator": nn.Sequential(nn.Flatten(), nn.Linear(64, 1))}
    loaded = imgsynth.load(tmp_path, **parts)
    assert torch.equal(loaded.sample(3), method.sample(3))


class Mine(HingeGAN):
    """A class outside the package."""


def test_a_class_outside_the_package_is_imported_only_if_trusted(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "my_methods", sys.modules[__name__])
    monkeypatch.setattr(Mine, "__module__", "my_methods")
    fit(make(Mine), digits, tmp_path)
    with pytest.raises(ValueError, match=r"trusted=\('my_methods',\)"):
        imgsynth.load(tmp_path)
    assert type(imgsynth.load(tmp_path, trusted=("my_methods",))) is Mine


# -- what is no checkpoint --------------------------------------------------------------------


class Bomb:
    """Would make a file if it were unpickled."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_pickled_objects_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"imgsynth": Bomb()}, "images-1.ckpt")
    with pytest.raises(ValueError, match="refused, nothing of it was run"):
        imgsynth.load("images-1.ckpt")
    assert not Path("exploded").exists()


@pytest.mark.parametrize("size", [0, 10, 700])
def test_a_truncated_checkpoint_is_refused_with_its_size(trained, tmp_path, size):
    path = tmp_path / "images-1.ckpt"
    path.write_bytes(find_checkpoint(trained[1]).read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"truncated or no checkpoint \({size} bytes\)"):
        read_checkpoint(path)


def test_a_text_file_is_no_checkpoint(tmp_path):
    (tmp_path / "images-1.ckpt").write_text("seed: 1\n")
    with pytest.raises(ValueError, match="truncated or no checkpoint"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_of_another_program_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="was not saved by imgsynth"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_missing_runs_and_checkpoints_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no run or checkpoint"):
        imgsynth.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        imgsynth.load(tmp_path)


# -- warm start -------------------------------------------------------------------------------


def test_a_warm_start_copies_weights_into_another_method_and_nothing_else(trained):
    method, folder = trained
    other = make(LSGAN)
    other.configure_model()
    assert set(warm_start(other, folder)) == {"generator", "discriminator"}
    for name in ("generator", "discriminator"):
        ours = getattr(other, name).state_dict()
        assert all(torch.equal(v, ours[k]) for k, v in getattr(method, name).state_dict().items())
    assert (other.updates, other.images_seen) == (0, 0)
    average = other.ema["generator"].state_dict()
    assert all(torch.equal(v, average[k]) for k, v in other.generator.state_dict().items())


def test_a_warm_start_may_copy_one_module_only(trained):
    other = make()
    before = {k: v.clone() for k, v in other.discriminator.state_dict().items()}
    assert warm_start(other, trained[1], modules=("generator",)) == ["generator"]
    assert all(torch.equal(v, before[k]) for k, v in other.discriminator.state_dict().items())


def test_a_warm_start_says_what_does_not_fit(trained):
    with pytest.raises(ValueError, match=r"'generator' of .* does not fit: .*size mismatch"):
        warm_start(make(width=5), trained[1])
    networks = DCGANGenerator((1, 8, 8), width=4), DCGANDiscriminator((1, 8, 8), width=4)
    with pytest.raises(ValueError, match=r"'generator' of .* does not fit"):
        warm_start(HingeGAN(*networks), trained[1])
    with pytest.raises(ValueError, match="There is no module 'encoder' to copy"):
        warm_start(make(), trained[1], modules=("encoder",))


# -- damaged and misfitting checkpoints -------------------------------------------------------


def changed(trained, tmp_path, section):
    checkpoint = read_checkpoint(trained[1])
    checkpoint["imgsynth"] |= section
    path = tmp_path / "changed.ckpt"
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize("section", [{}, None, {"method": {}}])
def test_a_checkpoint_without_its_parts_is_refused(tmp_path, section):
    torch.save({"imgsynth": section, "state_dict": {}}, tmp_path / "parts.ckpt")
    with pytest.raises(ValueError, match="no whole checkpoint: it lacks"):
        imgsynth.load(tmp_path / "parts.ckpt")


def test_a_checkpoint_of_something_else_than_a_method_is_refused(trained, tmp_path):
    network = {
        "class_path": "imgsynth.networks.MLPGenerator",
        "init_args": {"image_shape": [1, 8, 8]},
    }
    with pytest.raises(ValueError, match="holds MLPGenerator, which is no method"):
        imgsynth.load(changed(trained, tmp_path, {"method": network}))


def test_arguments_that_a_class_has_no_longer_are_named(trained, tmp_path):
    method = read_checkpoint(trained[1])["imgsynth"]["method"]
    method["init_args"]["old"] = 1
    with pytest.raises(ValueError, match=r"does not fit its class any more: .*'old'"):
        imgsynth.load(changed(trained, tmp_path, {"method": method}))


def test_a_part_of_another_size_does_not_fit(trained):
    other = make(width=8).generator
    with pytest.raises(ValueError, match=r"'HingeGAN' of .* does not fit: .*size mismatch"):
        imgsynth.load(trained[1], generator=other)


# -- which images a run was trained on --------------------------------------------------------


def train_on(folder, images, method=None, **options):
    data = Arrays(images, channels_last=False, batch_size=4)
    trainer = Trainer(
        accelerator="cpu",
        logger=Record(folder),
        callbacks=[Length(options.pop("length", 8)), Checkpoint()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method or unconditional(), data, **options)
    return data.fingerprint("train")


def unconditional():
    return HingeGAN(
        MLPGenerator((1, 8, 8), width=4, latent_dim=4), MLPDiscriminator((1, 8, 8), width=4)
    )


def test_a_checkpoint_tells_which_images_it_was_trained_on(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
    first, second = images[:12], images[8:]
    seen = train_on(tmp_path / "a", first)
    assert trained_on(tmp_path / "a").tolist() == sorted(seen.tolist())
    assert len(seen) == 12
    more = train_on(tmp_path / "b", second, imgsynth.load(tmp_path / "a"))
    both = sorted({*seen.tolist(), *more.tolist()})
    assert trained_on(tmp_path / "b").tolist() == both
    assert len(both) == 24
    method = unconditional()
    warm_start(method, tmp_path / "b")
    train_on(tmp_path / "c", first, method)
    assert trained_on(tmp_path / "c").tolist() == both


def test_a_run_that_goes_on_with_other_images_says_so_and_remembers_the_first(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (13, 1, 8, 8), dtype=np.uint8)
    seen = train_on(tmp_path / "a", images[:12])
    changed = images[[*range(11), 12]]
    options = {"ckpt_path": find_checkpoint(tmp_path / "a"), "weights_only": True, "length": 16}
    with pytest.warns(UserWarning, match="1 of the 12 training images are not those that"):
        now = train_on(tmp_path / "a", changed, **options)
    assert set(trained_on(tmp_path / "a").tolist()) == {*seen.tolist(), *now.tolist()}
    for name, hashes in (("fingerprints.npz", seen), ("fingerprints-2.npz", now)):
        with np.load(tmp_path / "a" / name, allow_pickle=False) as kept:
            assert kept["train"].tolist() == hashes.tolist()


def test_a_run_that_goes_on_with_other_labels_says_so(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)

    def data(labels):
        return Arrays(images, labels, channels_last=False, batch_size=4)

    fit(make(num=2), data(np.arange(12) % 2), tmp_path / "a")
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[Length(128)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with pytest.warns(UserWarning, match="The training labels are not those that"):
        trainer.fit(
            make(num=2),
            data(np.arange(12) % 3 % 2),
            ckpt_path=find_checkpoint(tmp_path / "a"),
            weights_only=True,
        )


def test_a_method_trained_twice_remembers_the_first_data(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
    method = unconditional()
    first = train_on(tmp_path / "a", images[:12], method)
    second = train_on(tmp_path / "b", images[12:], method)
    assert trained_on(tmp_path / "b").tolist() == sorted([*first.tolist(), *second.tolist()])
