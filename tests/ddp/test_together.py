"""What one process meets, all of them answer to: stopping, failing, being killed, resuming."""

import signal
import time

import pytest
import torch
from processes import imgsynth, ranks

from imgsynth.loading import find_checkpoint, read_checkpoint
from imgsynth.loggers.record import read_rows
from imgsynth.testing.contract import first_difference

pytestmark = [pytest.mark.ddp, pytest.mark.xdist_group("ddp")]  # one server of processes

UPDATE = 2 * 2 * 8  # images: 2 discriminator steps of 8 on each of 2 ranks
UPDATES = 60
BOUND = 20  # seconds within which all processes end when one is killed

CONFIG = f"""
seed: 3
images: {UPDATE * UPDATES}
data:
  class_path: imgsynth.data.Digits
  init_args: {{batch_size: 8}}
model:
  class_path: faulty.Faulty
  init_args:
    generator:
      class_path: imgsynth.networks.DCGANGenerator
      init_args: {{width: 4, latent_dim: 8}}
    discriminator:
      class_path: imgsynth.networks.DCGANDiscriminator
      init_args: {{width: 4, dropout: 0.2}}
    augment:
      class_path: imgsynth.augment.RandomTranslation
      init_args: {{max_shift: 1}}
    discriminator_steps: 2
    accumulate: 2
    discriminator_clip: 1.0
trainer:
  accelerator: cpu
  callbacks: [{{class_path: imgsynth.callbacks.Watchdog, init_args: {{timeout: 4}}}}]
  log_every_n_steps: 3
  enable_progress_bar: false
checkpoint:
  every: {10 * UPDATE}
  keep: 0
samples:
  every: {30 * UPDATE}
  gif: false
"""

MODULE = '''
import os
import resource
import signal

from imgsynth.methods import HingeGAN


class Faulty(HingeGAN):
    """Meets something on one rank, at update 25."""

    def __init__(self, *networks, fault: str = "", rank: int = 1, **options):
        super().__init__(*networks, **options)
        self.fault, self.rank = fault, rank

    def generator_loss(self, batch, fakes):
        terms = super().generator_loss(batch, fakes)
        if self.updates == 25 and self.global_rank == self.rank:
            if self.fault == "nan":
                terms["adversarial"] = terms["adversarial"] * float("nan")
            elif self.fault == "error":
                raise RuntimeError("the data of this rank is broken")
            elif self.fault == "disk":
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            elif self.fault:
                number, self.fault = signal.Signals[self.fault], ""  # once
                os.kill(os.getpid(), number)
        return terms
'''


def configure(folder, **options):
    """Write the configuration: undisturbed, or with a fault on a rank."""
    (folder / "faulty.py").write_text(MODULE)
    given = "".join(f"\n    {name}: {value}" for name, value in options.items())
    (folder / "config.yaml").write_text(
        CONFIG.replace("  init_args:\n", f"  init_args:{given}\n", 1)
    )
    return "fit", "-c", "config.yaml", "--name", "run"


def state(run):
    checkpoint = torch.load(find_checkpoint(run), weights_only=True)
    del checkpoint["imgsynth"]["method"]  # it says which fault was planted
    kept = ("state_dict", "optimizer_states", "imgsynth", "ImageDataModule", "Digits")
    return {k: checkpoint[k] for k in kept if k in checkpoint}


def rows(run):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(run)]


class Group:
    """The processes of one run; gone at the end of the ``with``."""

    def __init__(self, folder, *arguments, number=2):
        self.run = folder / "runs" / "run"
        self.commands = ranks(folder, *arguments, number=number)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for command in self.commands:
            command.__exit__()

    def wait(self, seconds=120):
        return [command.wait(seconds) for command in self.commands]

    def text(self):
        return "\n".join(command.text() for command in self.commands)


def train(folder, *arguments):
    with Group(folder, *arguments) as group:
        assert group.wait() == [0, 0], group.text()
        return group.text()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run on two ranks that nothing disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    train(folder, *configure(folder))
    return folder / "runs" / "run"


def assert_one_message(group, *fragments):
    text = group.text()
    assert text.count("imgsynth: ") == 1, text
    assert "Traceback" not in text
    message = text[text.index("imgsynth: ") :]
    for fragment in fragments:
        assert fragment in message, text


def test_two_ranks_leave_one_run_with_every_image_counted(reference):
    assert read_checkpoint(reference)["imgsynth"]["images_seen"] == UPDATE * UPDATES
    assert [row["updates"] for row in rows(reference)] == list(range(3, UPDATES + 1, 3))
    assert len(list((reference / "samples").glob("*.png"))) == 3


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_stops_the_other_with_one_message_and_a_good_checkpoint(
    tmp_path, reference, victim
):
    with Group(tmp_path, *configure(tmp_path, fault="SIGKILL", rank=victim)) as group:
        killed, other = group.commands[victim], group.commands[1 - victim]
        assert killed.wait() == -signal.SIGKILL
        began = time.monotonic()
        assert other.wait(BOUND) == 2
        assert time.monotonic() - began < BOUND
        assert_one_message(group, "process was lost", "imgsynth resume runs/run")
    assert state(group.run)["imgsynth"]["updates"] == 20
    config = group.run / "config.yaml"
    config.write_text(config.read_text().replace("fault: SIGKILL", "fault: ''"))
    train(tmp_path, "resume", "runs/run")
    assert first_difference(state(reference), state(group.run)) is None
    assert rows(group.run) == rows(reference)


def test_a_rank_that_hangs_stops_the_other(tmp_path):
    with Group(tmp_path, *configure(tmp_path, fault="SIGSTOP")) as group:
        assert group.commands[0].wait() == 2
        assert_one_message(group, "process 1 of 2 gave no sign of life for 4 s", "imgsynth resume")


@pytest.mark.parametrize("rank", [0, 1])
def test_nan_on_one_rank_stops_both_with_one_message(tmp_path, rank):
    with Group(tmp_path, *configure(tmp_path, fault="nan", rank=rank)) as group:
        assert group.wait() == [2, 2]
        assert_one_message(group, "became nan by update 27")
    assert state(tmp_path / "runs" / "run")["imgsynth"]["updates"] == 20


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_rank_ends_both_and_only_it_is_shown(tmp_path, rank):
    with Group(tmp_path, *configure(tmp_path, fault="error", rank=rank)) as group:
        codes = group.wait(100)
        assert codes[1 - rank] == 2
        failed, other = group.commands[rank], group.commands[1 - rank]
        assert "RuntimeError: the data of this rank is broken" in failed.text()
        assert "Traceback" not in other.text()
        assert "imgsynth: " not in other.text()


@pytest.mark.parametrize(
    ("name", "rank", "code"), [("SIGTERM", 1, 143), ("SIGTERM", 0, 143), ("SIGINT", 1, 130)]
)
def test_a_signal_to_any_rank_stops_both_at_one_update(tmp_path, reference, name, rank, code):
    with Group(tmp_path, *configure(tmp_path, fault=name, rank=rank)) as group:
        assert group.wait() == [code, code]
        assert group.text().count("continue with: imgsynth resume") == 1
    assert state(group.run)["imgsynth"]["updates"] == 27  # the next report
    train(tmp_path, "resume", "runs/run")
    # A save averages the statistics of batch norm over the ranks, to rounding the same whenever.
    ours, theirs = state(group.run), state(reference)
    assert_same_but_for_statistics(ours, theirs)
    assert_rows_alike(rows(group.run), rows(reference))


def assert_same_but_for_statistics(ours, theirs):
    for key, tensor in theirs["state_dict"].items():
        if "running_" in key:
            torch.testing.assert_close(ours["state_dict"].pop(key), tensor, msg=key)
            ours["state_dict"][key] = tensor
    ours["imgsynth"]["meter"] = theirs["imgsynth"]["meter"]
    assert first_difference(ours, theirs) is None


def assert_rows_alike(ours, theirs):
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert our == pytest.approx(their, rel=1e-5)


def test_a_full_disk_ends_both_ranks(tmp_path):
    with Group(tmp_path, *configure(tmp_path, fault="disk", rank=0)) as group:
        assert group.wait() == [2, 2]
        assert_one_message(group, "Could not save", "File too large", f"images-{20 * UPDATE:012d}")
    assert state(group.run)["imgsynth"]["updates"] == 20


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_continues_on_another_number_of_ranks_at_the_same_image(tmp_path, devices):
    arguments = configure(tmp_path)
    if devices == 2:
        imgsynth(tmp_path, *arguments, "--images", 40 * UPDATE)
        train(tmp_path, "resume", "runs/run", "--images", 60 * UPDATE)
    else:
        train(tmp_path, *arguments, "--images", str(40 * UPDATE))
        imgsynth(tmp_path, "resume", "runs/run", "--trainer.devices", 1, "--images", 60 * UPDATE)
    run = tmp_path / "runs" / "run"
    checkpoint = torch.load(find_checkpoint(run), weights_only=True)
    assert checkpoint["imgsynth"]["images_seen"] == 60 * UPDATE
    # Each of the 1,297 images came once an epoch, in the order of one run: the place follows.
    place = next(checkpoint[k] for k in ("Digits", "ImageDataModule") if k in checkpoint)["train"]
    steps = (
        [UPDATE // 2] * 80 + [UPDATE] * 20 if devices == 2 else [UPDATE] * 40 + [UPDATE // 2] * 40
    )
    epoch = position = 0
    for step in steps:
        for taken in (0, step):  # an epoch ends where less than a step is left of it
            position += taken
            if position + step > 1297:
                epoch, position = epoch + 1, 0
    assert (place["epoch"], place["position"]) == (epoch, position)
    images = [row["images"] for row in rows(run)]
    assert images == sorted(set(images))
    assert images[-1] == 60 * UPDATE or images[-1] > 58 * UPDATE
