import errno
import os
import resource
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from imgsynth.callbacks import Checkpoint, Length, newest_checkpoint
from imgsynth.loggers import WandB
from imgsynth.methods import NonFiniteError


def names(folder: Path) -> list[int]:
    files = sorted((folder / "checkpoints").iterdir())
    assert all(f.name == f"images-{int(f.name[7:19]):012d}.ckpt" for f in files), files
    return [int(f.name[7:19]) for f in files]


class FillDisk(Callback):
    """From an update on, no file may grow beyond 4 kB: a disk that is full."""

    def __init__(self, update: int) -> None:
        self.update = update
        self.limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.updates == self.update:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, self.limit[1]))

    def restore(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limit)


@pytest.mark.parametrize(
    ("every", "keep", "expected"),
    [
        (10, 0, [12, 20, 32, 40]),
        (10, 2, [32, 40]),
        (10, 1, [40]),
        (None, 3, [32, 36, 40]),
        ("1k", 3, [40]),
        (16, 0, [16, 32, 40]),
    ],
)
def test_saves_at_multiples_and_at_the_end_and_keeps_the_newest(
    gan, data, trainer, tmp_path, every, keep, expected
):
    trainer(tmp_path, Length(40), Checkpoint(every, keep)).fit(gan(), data())
    assert names(tmp_path) == expected
    newest = tmp_path / "checkpoints" / f"images-{40:012d}.ckpt"
    assert newest_checkpoint(tmp_path) == newest_checkpoint(newest.parent) == newest


def test_saves_at_the_end_of_a_run_of_epochs(gan, data, trainer, tmp_path):
    trainer(tmp_path, Checkpoint("1k"), max_epochs=2).fit(gan(), data())
    assert names(tmp_path) == [40]


def test_without_a_record_it_saves_in_the_trainers_folder(gan, data, trainer, tmp_path):
    run = trainer(None, Length(8), Checkpoint(), default_root_dir=tmp_path)
    run.fit(gan(), data())
    assert names(tmp_path)[-1] == 8


def test_takes_the_place_of_lightnings_own(trainer, tmp_path):
    checkpoint = Checkpoint()
    assert trainer(tmp_path, checkpoint).checkpoint_callbacks == [checkpoint]


def test_minutes_are_counted_by_the_clock(gan, data, trainer, tmp_path, monkeypatch):
    now = [0.0]

    class Tick(Callback):
        def on_train_batch_start(self, *args):
            now[0] += 25.0

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    trainer(tmp_path, Tick(), Length(40), Checkpoint("1k", 0, minutes=1)).fit(gan(), data())
    assert names(tmp_path) == [12, 24, 36, 40]


def test_a_checkpoint_holds_nothing_but_plain_data(gan, data, trainer, tmp_path):
    trainer(tmp_path, Length(12), Checkpoint()).fit(gan(), data())
    saved = torch.load(newest_checkpoint(tmp_path), weights_only=True)
    assert saved["global_step"] == saved["imgsynth"]["updates"] == 3
    assert saved["imgsynth"]["images_seen"] == 12
    assert len(saved["optimizer_states"]) == 2


@pytest.mark.parametrize("point", [8, 20, 28, 40], ids=lambda n: f"{n // 4} of 12 updates")
def test_a_run_resumed_from_any_update_ends_in_the_same_tensors(
    gan, data, trainer, tmp_path, point
):
    whole = gan()
    trainer(tmp_path / "whole", Length(48), Checkpoint(4, 0)).fit(whole, data())
    resumed = gan()
    run = trainer(tmp_path / "resumed", Length(48), Checkpoint(4, 0))
    file = tmp_path / "whole" / "checkpoints" / f"images-{point:012d}.ckpt"
    run.fit(resumed, data(), ckpt_path=file, weights_only=True)
    assert resumed.updates == 12
    state = resumed.state_dict()
    for key, value in whole.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_full_disk_leaves_the_last_checkpoint_and_is_explained(gan, data, trainer, tmp_path):
    fill = FillDisk(update=6)
    run = trainer(tmp_path, Length(40), fill, Checkpoint(16, keep=1))
    try:
        with pytest.raises(OSError, match="images-000000000032") as caught:
            run.fit(gan(), data())
    finally:
        fill.restore()
    message = str(caught.value)
    assert message.startswith(f"Could not save {tmp_path}/checkpoints/images-000000000032.ckpt: ")
    assert "File too large" in message
    assert message.endswith("images-000000000016.ckpt: resume from it when this is repaired.")
    assert caught.value.errno == errno.EFBIG
    assert names(tmp_path) == [16]
    assert torch.load(newest_checkpoint(tmp_path), weights_only=True)["global_step"] == 4


def test_a_write_that_breaks_off_never_touches_the_old_file(
    gan, data, trainer, tmp_path, monkeypatch
):
    def half(self, path, *args, **kwargs):  # what moving between two disks does when one is full
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer(tmp_path, Length(20), Checkpoint()).fit(gan(), data())
    old = newest_checkpoint(tmp_path).read_bytes()
    earlier = tmp_path / "checkpoints" / f"images-{16:012d}.ckpt"
    run = trainer(tmp_path, Length(20), Checkpoint())
    monkeypatch.setattr(Trainer, "save_checkpoint", half)
    with pytest.raises(OSError, match="No space left on device"):
        run.fit(gan(), data(), ckpt_path=earlier, weights_only=True)
    assert newest_checkpoint(tmp_path).read_bytes() == old
    assert not list((tmp_path / "checkpoints").glob("*.part"))


def test_a_save_that_lightning_gives_up_in_silence_is_an_error(
    gan, data, trainer, tmp_path, monkeypatch
):
    def denied(source: str, target: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", target)

    monkeypatch.setattr("shutil.move", denied)
    with pytest.raises(OSError, match=r"no permission to write there\. There is no earlier"):
        trainer(tmp_path, Length(8), Checkpoint()).fit(gan(), data())


def test_poisoned_weights_are_never_saved(gan, data, trainer, tmp_path):
    class Poison(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if pl_module.updates == 5:
                next(pl_module.generator.parameters()).data.fill_(float("nan"))

    run = trainer(tmp_path, Length(40), Poison(), Checkpoint(8, 0), log_every_n_steps=100)
    with pytest.raises(NonFiniteError):
        run.fit(gan(), data())
    assert names(tmp_path) == [8, 16]


def test_an_exception_in_a_step_saves_nothing(gan, data, trainer, tmp_path):
    class Fail(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if pl_module.updates == 5:
                raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, Length(40), Fail(), Checkpoint(8, 0)).fit(gan(), data())
    assert names(tmp_path) == [8, 16]


def test_a_new_run_among_the_checkpoints_of_another_is_refused(gan, data, trainer, tmp_path):
    trainer(tmp_path, Length(8), Checkpoint()).fit(gan(), data())
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run, such as images-"):
        trainer(tmp_path, Length(8), Checkpoint()).fit(gan(), data())


def test_a_run_set_back_drops_what_lay_beyond_once_a_new_one_is_safe(gan, data, trainer, tmp_path):
    trainer(tmp_path, Length(40), Checkpoint(8, 0)).fit(gan(), data())
    assert names(tmp_path) == [8, 16, 24, 32, 40]
    (tmp_path / "checkpoints" / "images-000000000099.ckpt.part").touch()
    run = trainer(tmp_path, Length(20), Checkpoint(8, 0))
    file = tmp_path / "checkpoints" / f"images-{8:012d}.ckpt"
    run.fit(gan(), data(), ckpt_path=file, weights_only=True)
    assert names(tmp_path) == [8, 16, 20]


def test_newest_goes_by_images_and_ignores_other_files(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("images-000000000900.ckpt", "images-000000001000.ckpt", "last.ckpt"):
        (folder / name).touch()
    (folder / "images-000000002000.ckpt.part").touch()
    os.utime(folder / "images-000000001000.ckpt", (0, 0))
    assert newest_checkpoint(tmp_path) == folder / "images-000000001000.ckpt"


class Scores(Callback):
    """Reports a score for each multiple of eight images."""

    def __init__(self, *scores: float) -> None:
        self.scores = scores

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.images_seen % 8 == 0:
            score = self.scores[pl_module.images_seen // 8 - 1]
            trainer.callback_metrics["val/fd"] = torch.tensor(score)


class Takes(Logger):
    """Takes checkpoints as Weights & Biases does."""

    name = version = ""

    def __init__(self) -> None:
        super().__init__()
        self.taken = []

    def log_checkpoint(self, path, aliases):
        self.taken.append((int(path.name[7:19]), aliases, path.is_file()))

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, params): ...


@pytest.mark.parametrize(
    ("mode", "best", "kept"), [("min", 16, [16, 40]), ("max", 24, [24, 40]), (None, None, [40])]
)
def test_the_best_checkpoint_is_kept_and_handed_to_loggers(
    gan, data, trainer, tmp_path, mode, best, kept
):
    takes = Takes()
    watched = {} if mode is None else {"monitor": "val/fd", "mode": mode}
    checkpoint = Checkpoint(8, keep=1, **watched)
    run = trainer(tmp_path, Scores(4.0, 2.0, 9.0, 3.0, 5.0), Length(40), checkpoint)
    run.loggers.append(takes)
    run.fit(gan(), data())
    assert names(tmp_path) == kept
    assert (None if checkpoint.best is None else int(checkpoint.best.name[7:19])) == best
    assert takes.taken == [(40, ["latest"], True)] + ([(best, ["best"], True)] if best else [])


def test_a_resumed_run_compares_with_the_best_before(gan, data, trainer, tmp_path):
    scores = Scores(4.0, 2.0, 9.0, 3.0, 5.0)
    for length in (16, 32):
        checkpoint = Checkpoint(8, keep=1, monitor="val/fd")
        newest = newest_checkpoint(tmp_path)
        run = trainer(tmp_path, scores, Length(length), checkpoint)
        run.fit(gan(), data(), ckpt_path=newest, weights_only=True)
    assert names(tmp_path) == [16, 32]
    assert checkpoint.best == tmp_path / "checkpoints" / f"images-{16:012d}.ckpt"


def test_without_a_record_files_go_to_the_folder_of_the_wandb_run(gan, data, trainer, tmp_path):
    run = trainer(None, Length(8), Checkpoint(), default_root_dir=tmp_path / "elsewhere")
    run.loggers = [WandB(tmp_path / "run", mode="disabled")]
    run.fit(gan(), data())
    assert names(tmp_path / "run") == [4, 8]
    assert not (tmp_path / "elsewhere").exists()


def test_a_key_that_nobody_reports_is_named(gan, data, trainer, tmp_path):
    run = trainer(tmp_path, Length(16), Checkpoint(8, monitor="val/fid"))
    with pytest.warns(UserWarning, match="monitor='val/fid' is not reported.*train/generator"):
        run.fit(gan(), data())


def test_a_run_stopped_by_a_signal_has_no_time_to_upload(gan, data, trainer, tmp_path):
    class Signalled(Callback):
        signal = 15

    takes = Takes()
    run = trainer(tmp_path, Signalled(), Length(16), Checkpoint())
    run.loggers.append(takes)
    run.fit(gan(), data())
    assert takes.taken == []


@pytest.mark.parametrize("wrong", [{"every": 0}, {"keep": -1}, {"minutes": 0}, {"mode": "low"}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Checkpoint(**wrong)


def test_a_trainer_told_to_stop_too_early_goes_on_without_saving_each_update(
    gan, data, trainer, tmp_path
):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = pl_module.updates >= 3

    trainer(tmp_path, Stop(), Length(40), Checkpoint(100, 0), min_steps=7).fit(gan(), data())
    assert names(tmp_path) == [12, 28]
