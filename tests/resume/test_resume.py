"""Runs that are killed and resumed through the command line end bit by bit like undisturbed ones.

Everything that could break this is switched on: a folder of images from its cache with random
transforms, two discriminator steps, accumulation, dropout, schedules with warm-up, labels,
augmentation, clipping, spectral norm, averaged weights and scores.
"""

import random
import signal
import time

import pytest
import torch
from processes import Command, imgsynth

from imgsynth.data import Digits
from imgsynth.images import save_png
from imgsynth.loading import find_checkpoint
from imgsynth.loggers.record import read_rows
from imgsynth.testing.contract import first_difference

UPDATES = 90
IMAGES = 32 * UPDATES  # 2 discriminator steps of 16; an epoch of the digits is 40 updates
EVERY = 32 * 10  # a checkpoint falls on the boundary between two epochs, at update 40

CONFIG = f"""
seed: 3
images: {IMAGES}
data:
  class_path: imgsynth.data.ImageFolder
  init_args:
    root: ROOT
    batch_size: 16
    transforms: [{{class_path: imgsynth.augment.RandomFlip}}]
model:
  class_path: imgsynth.methods.HingeGAN
  init_args:
    generator:
      class_path: imgsynth.networks.DCGANGenerator
      init_args: {{width: 4, latent_dim: 8}}
    discriminator:
      class_path: imgsynth.networks.DCGANDiscriminator
      init_args: {{width: 4, dropout: 0.2, batch_norm: false, spectral_norm: true}}
    augment:
      class_path: imgsynth.augment.RandomTranslation
      init_args: {{max_shift: 1}}
    discriminator_steps: 2
    accumulate: 2
    discriminator_clip: 1.0
    generator_schedule:
      class_path: imgsynth.optim.CosineDecay
      init_args: {{warmup: 320, start: 640}}
trainer:
  accelerator: cpu
  log_every_n_steps: 3
evaluate:
  every: 960
  metrics: recall,swd
  num: 100
  extractor: {{class_path: imgsynth.metrics.PixelExtractor}}
checkpoint:
  every: {EVERY}
  keep: 0
samples:
  every: 960
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The configuration, which trains on the digits as a folder of PNG files."""
    root = tmp_path_factory.mktemp("digits")
    for i, (images, labels) in enumerate(Digits(batch_size=1).reference("train")):
        save_png(root / str(labels.item()) / f"{i:04d}.png", images[0])
    return CONFIG.replace("ROOT", str(root))


@pytest.fixture(scope="module")
def reference(tmp_path_factory, config):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "config.yaml").write_text(config)
    imgsynth(folder, "fit", "-c", "config.yaml", "--name", "run")
    return folder / "runs" / "run"


def rows(run):
    """The record without what a clock says."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(run)]


def everything(run):
    """All that the last checkpoint holds but Lightning's own counters."""
    checkpoint = torch.load(find_checkpoint(run), weights_only=True)
    assert checkpoint["imgsynth"]["updates"] == UPDATES
    kept = ("state_dict", "optimizer_states", "imgsynth", "ImageFolder")
    return {k: checkpoint[k] for k in kept if k in checkpoint}


def wait_for(run, images, command):
    """Return once the record has reached a number of images."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if (run / "record.jsonl").exists() and any(
            row.get("images", 0) >= images for row in read_rows(run)
        ):
            return
        assert command.process.is_alive(), command.text()
        time.sleep(0.002)
    raise AssertionError(f"{images} images were not reached:\n{command.text()}")


def interrupt(folder, config, number, update, *options):
    """Start the run, send the signal once the update is on record, return the exit code."""
    (folder / "config.yaml").write_text(config)
    arguments = ("fit", "-c", "config.yaml", "--name", "run", *options)
    with Command(folder, *arguments) as command:
        wait_for(folder / "runs" / "run", 32 * update, command)
        command.kill(number)
        return command.wait()


def assert_same_end(run, reference):
    assert first_difference(everything(reference), everything(run)) is None
    assert rows(run) == rows(reference)
    for sheet in sorted((reference / "samples").glob("*.png")):
        assert (run / "samples" / sheet.name).read_bytes() == sheet.read_bytes(), sheet.name


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("moment", ["middle", "boundary"])
def test_a_run_killed_at_a_random_update_ends_like_an_undisturbed_one(
    tmp_path, config, reference, workers, moment
):
    first = 12 if moment == "middle" else 41  # after 40 the last checkpoint is the epoch's end
    update = random.SystemRandom().randrange(first, first + 8)
    code = interrupt(tmp_path, config, signal.SIGKILL, update, "--data.num_workers", workers)
    assert code == -signal.SIGKILL
    run = tmp_path / "runs" / "run"
    checkpoint = torch.load(find_checkpoint(run), weights_only=True)
    assert checkpoint["imgsynth"]["updates"] < UPDATES
    imgsynth(tmp_path, "resume", "runs/run")
    assert_same_end(run, reference)


@pytest.mark.parametrize(
    ("number", "code", "workers"), [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 2)]
)
def test_a_run_asked_to_stop_saves_and_ends_like_an_undisturbed_one(
    tmp_path, config, reference, number, code, workers
):
    update = random.SystemRandom().randrange(10, 60)
    assert interrupt(tmp_path, config, number, update, "--data.num_workers", workers) == code
    run = tmp_path / "runs" / "run"
    saved = torch.load(find_checkpoint(run), weights_only=True)["imgsynth"]["updates"]
    assert update <= saved < UPDATES  # nothing of what was done is lost
    imgsynth(tmp_path, "resume", "runs/run")
    assert_same_end(run, reference)


def test_a_run_killed_twice_ends_like_an_undisturbed_one(tmp_path, config, reference):
    interrupt(tmp_path, config, signal.SIGKILL, 15)
    run = tmp_path / "runs" / "run"
    with Command(tmp_path, "resume", "runs/run") as command:
        wait_for(run, 32 * 45, command)
        command.kill(signal.SIGKILL)
        command.wait()
    imgsynth(tmp_path, "resume", "runs/run")
    assert_same_end(run, reference)


def test_resuming_a_finished_run_changes_nothing(reference):
    before = everything(reference)
    text = imgsynth(reference.parents[1], "resume", "runs/run")
    assert "images" in text
    assert first_difference(before, everything(reference)) is None


def test_samples_of_the_command_line_depend_on_seed_place_and_label_only(reference, tmp_path):
    run = str(reference)
    imgsynth(tmp_path, "sample", run, "--num", 12, "--label", 3, "--out", "few")
    imgsynth(tmp_path, "sample", run, "--num", 70, "--label", 3, "--out", "many")
    names = sorted(p.name for p in (tmp_path / "few").glob("0*.png"))
    assert names == [f"{i:06d}_label3.png" for i in range(12)]
    for name in names:
        few, many = (tmp_path / folder / name for folder in ("few", "many"))
        assert few.read_bytes() == many.read_bytes()
    assert (tmp_path / "few" / "grid.png").exists()
