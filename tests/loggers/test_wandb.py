import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import nn
from wandb_files import history, pieces, records, values, would_upload

import imgsynth.loggers.wandb as module
import imgsynth.loggers.wandb_start as start
from imgsynth.callbacks import Checkpoint, Evaluate, Length, Samples
from imgsynth.data import Arrays
from imgsynth.images import to_uint8
from imgsynth.loggers import Record, WandB, read_rows
from imgsynth.methods import HingeGAN
from imgsynth.networks import MLPDiscriminator, MLPGenerator

SHAPE = (1, 8, 8)
NO_IMPORT = {"wandb": None}
"""What makes ``import wandb`` fail."""


def make_gan() -> HingeGAN:
    torch.manual_seed(0)
    generator = MLPGenerator(SHAPE, latent_dim=4, width=4, depth=1)
    return HingeGAN(generator, MLPDiscriminator(SHAPE, width=4, depth=1))


def make_data() -> Arrays:
    pixels = torch.randint(0, 256, (20, 8, 8), generator=torch.Generator().manual_seed(0))
    return Arrays(pixels.to(torch.uint8), batch_size=4)


def fit(logger: WandB, images: int = 8, callbacks: tuple[Callback, ...] = (), **kwargs) -> HingeGAN:
    method = make_gan()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=[logger, Record(logger.folder)],
        callbacks=[Length(images), Checkpoint(4, keep=0), *callbacks],
        max_epochs=-1,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, make_data(), **kwargs)
    return method


def picture(channels: int) -> torch.Tensor:
    """All that a picture may hold: values beyond the range, and such as are rounded."""
    generator = torch.Generator().manual_seed(channels)
    return torch.rand(channels, 5, 7, generator=generator) * 2.4 - 1.2


class Shows(Callback):
    """What an author may log besides, at the end of training."""

    def __init__(self, logger: WandB) -> None:
        self.logger = logger

    def on_train_start(self, trainer, pl_module):
        self.run_at_start = self.logger.experiment

    def on_train_end(self, trainer, pl_module):
        for channels in (1, 3, 4):
            self.logger.log_images(f"of-{channels}", picture(channels), 16)
        self.logger.log_image("mine", [picture(3), picture(1)])
        self.logger.log_table("table", columns=["a", "b"], data=[[1, 2]])
        self.logger.log_checkpoint(trainer.logger.folder / "checkpoints/images-000000000016.ckpt")


class Stops(Callback):
    """A run that a signal stops, or that fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.signal = None if error else signal.SIGTERM
        self.error = error

    def on_train_batch_end(self, trainer, *args):
        if self.error:
            raise self.error
        trainer.should_stop = True


@pytest.fixture(scope="module", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No account and no settings of the developer, and a repository as working directory."""
    repository = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("NETRC", raising=False)
        patch.chdir(repository)
        git = ["git", "-c", "user.email=a@b.c", "-c", "user.name=a"]
        Path("code.py").write_text("old\n")
        for words in (["init", "-q"], ["add", "code.py"], ["commit", "-qm", "first"]):
            subprocess.run([*git, *words], check=True)
        Path("code.py").write_text("new\n")
        yield
        if isinstance(sys.modules.get("wandb"), type(os)):
            sys.modules["wandb"].teardown()


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run offline, with everything that is logged."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    logger = WandB(folder, "offline", tags=("mine",), notes="a note")
    shows = Shows(logger)
    logger.watch(nn.Linear(1, 1))
    method = fit(logger, 16, callbacks=(Samples(8, gif=False), shows))
    (piece,) = pieces(folder)
    return SimpleNamespace(
        folder=folder, piece=piece, records=records(piece), method=method, shows=shows
    )


def the_run(found: list[dict]) -> dict[str, Any]:
    return next(record["run"] for record in found if record["type"] == "run")


def exit_code(found: list[dict]) -> int:
    return next(record["exit"].get("exit_code", 0) for record in found if record["type"] == "exit")


def logged_picture(offline: SimpleNamespace, key: str, number: int | None = None) -> np.ndarray:
    for row in history(offline.records):
        path = row.get(f"{key}.path") or row.get(f"{key}.filenames", [None] * 9)[number or 0]
        if path:
            with Image.open(offline.piece / "files" / path) as opened:
                return np.asarray(opened)
    raise AssertionError(f"{key} was not logged")


def as_hwc(image: torch.Tensor) -> np.ndarray:
    pixels = to_uint8(image).permute(1, 2, 0).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


# -- what is logged ---------------------------------------------------------------------------


def test_rows_are_those_of_the_record(offline):
    rows = [row for row in history(offline.records) if "train/generator/adversarial" in row]
    ours = read_rows(offline.folder)
    assert [row["images"] for row in ours] == [4, 8, 12, 16]
    for row, our in zip(rows, ours, strict=True):
        assert row["images_seen"] == our["images"]
        assert row["updates"] == our["updates"]
        assert math.isclose(row["seconds"], our["seconds"], abs_tol=0.5)
        terms = {key: value for key, value in our.items() if "/" in key}
        assert terms == {key: row[key] for key in terms}
        assert {key for key in row if key.startswith("train/")} == set(terms)


def test_all_plots_have_the_images_seen_as_their_axis(offline):
    (metric,) = [record["metric"] for record in offline.records if record["type"] == "metric"]
    assert (metric["glob_name"], metric["step_metric"]) == ("*", "images_seen")
    assert all("images_seen" in row for row in history(offline.records))


def test_a_run_is_found_by_method_data_and_name(offline):
    run = the_run(offline.records)
    assert run["run_group"] == "HingeGAN-Arrays"
    assert run["job_type"] == "train"
    assert run["tags"] == ["HingeGAN", "Arrays", "mine"]
    assert run["display_name"] == "first"
    assert run["project"] == "imgsynth"
    assert run["notes"] == "a note"


def test_the_configuration_says_how_the_run_was_built(offline):
    config = values(offline.records)
    facts = json.loads((offline.folder / "run.json").read_text())
    assert config["model"] == facts["method"]
    assert config["data"]["class_path"] == "imgsynth.data.Arrays"
    assert config["trainer"] == {"precision": "32-true", "devices": 1}
    assert (config["seed"], config["total_images"]) == (facts["seed"], 16)


def test_scores_are_rows_and_their_protocols_are_in_the_configuration(tmp_path):
    folder = tmp_path / "scored"
    fit(WandB(folder, "offline"), 8, callbacks=(Evaluate(every=8, metrics="swd", num=64),))
    found = records(pieces(folder)[0])
    (row,) = [row for row in read_rows(folder) if "val/swd64" in row]
    (logged,) = [row for row in history(found) if "val/swd64" in row]
    assert (logged["val/swd64"], logged["images_seen"]) == (row["val/swd64"], 8)
    protocol = values(found)["protocols"]["val/swd64"]
    assert protocol["hash"] == row["protocols"]["val/swd64"]
    assert protocol["extractor"]["name"] == "pixels"


def test_the_state_of_the_code_is_noted(offline):
    facts = json.loads((offline.folder / "run.json").read_text())["git"]
    assert values(offline.records)["git"] == {"commit": facts["commit"], "dirty": True}
    assert the_run(offline.records)["git"]["commit"] == facts["commit"]
    assert "+new\n" in (offline.piece / "files" / "code.diff").read_text()
    assert '"path":"code.diff"' in json.dumps(offline.records, separators=(",", ":"))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_sheet_of_pictures_arrives_to_the_bit(offline, channels):
    shown = logged_picture(offline, f"pictures/of-{channels}")
    assert (shown == as_hwc(picture(channels))).all()
    assert shown.min() == 0
    assert shown.max() == 255


def test_the_sheets_of_a_run_are_those_in_its_folder(offline):
    rows = [row for row in history(offline.records) if "pictures/samples.path" in row]
    assert [row["images_seen"] for row in rows] == [0, 8, 16]
    for row in rows:
        ours = offline.folder / "samples" / f"{row['images_seen']:012d}.png"
        with (
            Image.open(ours) as a,
            Image.open(offline.piece / "files" / row["pictures/samples.path"]) as b,
        ):
            assert (np.asarray(a) == np.asarray(b)).all()


def test_what_authors_log_by_themselves_arrives(offline):
    assert (logged_picture(offline, "mine", 0) == as_hwc(picture(3))).all()
    assert (logged_picture(offline, "mine", 1) == as_hwc(picture(1))).all()
    assert any("table.ncols" in row for row in history(offline.records))


def test_watching_may_begin_before_training():
    called = []
    logger = WandB("runs/unused")
    logger.watch(nn.Linear(1, 1), log_freq=7)
    assert logger._watched[1:] == ("gradients", 7, True)
    logger._experiment = SimpleNamespace(watch=lambda *a, **k: called.append(k))
    logger.watch(nn.Linear(1, 1), log="all")
    assert called == [{"log": "all", "log_freq": 100, "log_graph": True}]


def test_it_is_lightnings_logger_and_has_a_run_only_while_it_trains(offline):
    logger = offline.shows.logger
    assert isinstance(logger, WandbLogger)
    assert offline.shows.run_at_start.id == (offline.folder / "wandb/run-id").read_text().split()[0]
    assert logger.experiment.anything("does", "nothing") is None


# -- how it ends ------------------------------------------------------------------------------


def test_a_run_that_reached_its_end_is_finished(offline):
    assert exit_code(offline.records) == 0


def test_a_run_that_a_signal_stopped_says_so(tmp_path):
    fit(WandB(tmp_path / "run", "offline"), callbacks=(Stops(),))
    assert exit_code(records(pieces(tmp_path / "run")[0])) == 128 + signal.SIGTERM


def test_a_run_that_failed_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="broken"):
        fit(WandB(tmp_path / "run", "offline"), callbacks=(Stops(RuntimeError("broken")),))
    assert exit_code(records(pieces(tmp_path / "run")[0])) == 1


# -- one run, one id --------------------------------------------------------------------------


def test_a_run_that_resumes_goes_on_as_the_same_run_of_wandb(tmp_path, capsys):
    folder = tmp_path / "run"
    fit(WandB(folder, "offline"), 8)
    newest = folder / "checkpoints/images-000000000008.ckpt"
    fit(WandB(folder, "offline"), 16, ckpt_path=newest, weights_only=True)
    found = sorted(
        (records(piece) for piece in pieces(folder)), key=lambda r: the_run(r)["start_time"]
    )
    assert len(found) == 2
    assert len({the_run(piece)["run_id"] for piece in found}) == 1
    rows = {row["images_seen"]: row for piece in found for row in history(piece)}
    ours = {row["images"]: row for row in read_rows(folder)}
    assert sorted(rows) == sorted(ours) == [4, 8, 12, 16]
    key = "train/discriminator/real"
    assert [rows[n][key] for n in rows] == [ours[n][key] for n in rows]
    assert would_upload(capsys.readouterr().out.splitlines()[-1]) == 2


def test_two_fits_in_one_process_are_two_runs(offline, tmp_path):
    fit(WandB(tmp_path / "second", "offline"))
    second = the_run(records(pieces(tmp_path / "second")[0]))
    assert second["run_id"] != the_run(offline.records)["run_id"]


@pytest.fixture
def held(tmp_path):
    """A run folder that holds the id abc."""
    folder = tmp_path / "runs" / "held"
    (folder / "wandb").mkdir(parents=True)
    (folder / "wandb/run-id").write_text(f"abc\n{folder.resolve()}\n")
    return folder


def test_an_id_that_another_run_has_is_refused_before_training(held, monkeypatch):
    other = held.with_name("other")
    with pytest.raises(ValueError, match=rf"'abc' is that of {held} already.*resume {held}"):
        fit(WandB(other, "offline", id="abc"))
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    with pytest.raises(ValueError, match="choose another id"):
        fit(WandB(other, "offline"))
    assert not other.exists()


def test_the_id_of_the_environment_is_that_of_a_new_run_only(held, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    assert WandB(held.with_name("other"))._run_id(resumes=False) == "given"
    assert WandB(held)._run_id(resumes=False) == "given"
    assert WandB(held)._run_id(resumes=True) == "abc"


def test_without_a_given_id_a_run_gets_a_new_one(held):
    ids = {WandB(held.with_name("other"))._run_id(resumes=False) for _ in range(3)}
    ids.add(WandB(held)._run_id(resumes=False))  # a failed start left it behind
    assert len(ids) == 4
    assert "abc" not in ids


def test_a_copied_folder_continues_as_a_run_of_its_own(held, capsys):
    copy = held.with_name("copy")
    shutil.copytree(held, copy)
    assert WandB(copy)._run_id(resumes=True) != "abc"
    assert capsys.readouterr().out.count(f"{copy} is a copy of {held}") == 1
    assert WandB(copy, id="abc")._run_id(resumes=True) != "abc"
    assert WandB(held)._run_id(resumes=True) == "abc"


def test_a_moved_folder_keeps_its_run(held):
    moved = held.rename(held.with_name("moved"))
    assert WandB(moved)._run_id(resumes=True) == "abc"


# -- nothing of wandb ends a run --------------------------------------------------------------


class Broken:
    """A run that starts, and then fails at everything."""

    id, offline, dir, url = "abc", False, ".", "https://wandb.invalid/abc"
    settings = SimpleNamespace(disable_git=True, sync_dir="where/it/is")

    def __init__(self):
        self.config = {}

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, row):
        raise BrokenPipeError("the service is gone")

    def finish(self, exit_code):
        raise TimeoutError("Timed out finishing run.")


def test_a_run_whose_rows_and_end_cannot_be_logged_is_trained_to_its_end(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(module, "open_run", lambda *args: (Broken(), ""))
    assert fit(WandB(tmp_path / "run", "online"), 16).images_seen == 16
    assert len(read_rows(tmp_path / "run")) == 4
    out, err = capsys.readouterr()
    assert "W&B: https://wandb.invalid/abc\n" in out
    assert [line for line in err.splitlines() if line.startswith("W&B")] == [
        "W&B: the service is gone: a row is missing",
        "W&B: Timed out finishing run: the end was not uploaded; later: "
        "wandb sync --include-online where/it/is",
    ]


@pytest.mark.parametrize("mode", ["offline", "online", "auto"])
def test_a_broken_installation_is_said_in_one_line(tmp_path, monkeypatch, capsys, mode):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert fit(WandB(tmp_path / "run", mode)).images_seen == 8
    said = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line]
    assert len(said) == 1
    assert "training goes on without it" in said[0]


def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/wandb").write_text("a file where the folder should be")
    assert fit(WandB(tmp_path / "run", "offline")).images_seen == 8
    assert capsys.readouterr().err.count("it did not start") == 1


def test_a_mode_of_the_environment_that_is_none_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    assert fit(WandB(tmp_path / "run")).images_seen == 8
    assert capsys.readouterr().err.count("but 'nonsense': it did not start, and training") == 1


def test_a_bad_value_in_the_environment_is_said_and_the_run_is_written_offline(
    tmp_path, monkeypatch, capsys
):
    sys.modules["wandb"].teardown()  # it reads its environment once
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "soon")
    assert fit(WandB(tmp_path / "run")).images_seen == 8
    said = capsys.readouterr().out
    why = "init_timeout: Input should be a valid number, unable to parse string as a number"
    assert f"W&B: offline ({why}); to upload" in said
    assert len(pieces(tmp_path / "run")) == 1
    sys.modules["wandb"].teardown()


def test_what_cannot_be_a_key_is_said_and_the_run_is_written_offline(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    fit(WandB(tmp_path / "run", "online"))
    assert "W&B: offline (WANDB_API_KEY invalid: " in capsys.readouterr().out
    assert len(pieces(tmp_path / "run")) == 1


def test_a_host_that_is_none_is_said_and_the_run_is_written_offline(tmp_path, online, capsys):
    online.setenv("WANDB_BASE_URL", "https://wandb.invalid")
    online.setenv("WANDB_INIT_TIMEOUT", "1")
    fit(WandB(tmp_path / "run", "online"))
    assert "W&B: offline (could not connect: " in capsys.readouterr().out
    (kept,) = (tmp_path / "run/wandb").glob("*run-2*")
    assert kept == pieces(tmp_path / "run")[0]


def test_the_environment_names_another_place(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "far"))
    fit(WandB(tmp_path / "run", "offline"))
    assert len(pieces(tmp_path / "far")) == 1
    assert [path.name for path in (tmp_path / "run/wandb").iterdir()] == ["run-id"]


def test_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "")
    monkeypatch.setenv("WANDB_MODE", "run")
    before = dict(os.environ)
    with start._environment():
        assert os.environ["WANDB_SILENT"] == "true"
        assert "WANDB_MODE" not in os.environ
        os.environ["WANDB_CACHE_DIR"] = "x"
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"project": "a/b"}, r"project must have .* none of /\\#\?%:.*got 'a/b'"),
        ({"project": "a" * 129}, "at most 128 characters"),
        ({"project": "a\nb"}, "project must have"),
        ({"id": "a/b"}, "id must have .* none of /.*got 'a/b'"),
        ({"id": "a,b"}, "id must have"),
        ({"id": "a\x07"}, "id must have"),
        ({"id": " a"}, "no space at an end, got ' a'"),
        ({"tags": ("a", "")}, "tag must have 1 to 64 characters, got ''"),
        ({"tags": "a" * 65}, "tag must have 1 to 64 characters, got 'aaa"),
    ],
)
def test_what_wandb_would_refuse_is_refused_at_once(options, said):
    with pytest.raises(ValueError, match=said):
        WandB("runs/a", **options)


def test_what_wandb_takes_is_taken(monkeypatch):
    import wandb

    taken = {"project": "my, project's; 1", "id": "a 1*[_]-.é", "tags": ("a" * 64, "/\\#?%:")}
    WandB("runs/a", **taken)
    names = {"id": "run_id", "tags": "run_tags"}
    wandb.Settings(**{names.get(name, name): value for name, value in taken.items()})
    monkeypatch.setenv("WANDB_PROJECT", "a/b")  # no option: W&B says it, and nothing ends
    WandB("runs/a")


def test_one_tag_is_a_tag():
    assert WandB("runs/a", tags="mine")._tags == ("mine",)


def test_of_an_error_what_tells_a_user_something_is_said():
    import wandb

    with pytest.raises(ValueError, match="type=value_error") as error:
        wandb.Settings(run_tags=("",))
    said = "run_tags: Tag at index 0 is empty. Tags must be between 1 and 64 characters"
    assert start.reason(error.value) == said
    assert start.reason(TimeoutError()) == "TimeoutError"
    assert start.reason(OSError("the first.\nthe second")) == "the first"


def test_a_mode_that_is_none_is_refused_at_once():
    with pytest.raises(ValueError, match="auto, online, offline or disabled, got 'off'"):
        WandB("runs/a", mode="off")


# -- no trace ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["option", "environment", "rank"])
def test_disabled_or_not_the_first_process_it_leaves_no_trace(tmp_path, monkeypatch, capfd, how):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail, and be said
    if how == "environment":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WandB(tmp_path / "run", "disabled" if how == "option" else "auto")
    if how == "rank":
        monkeypatch.setattr(rank_zero_only, "rank", 1)
    fit(logger, callbacks=(Samples(gif=False),))
    assert "W&B" not in "".join(capfd.readouterr())
    assert not (tmp_path / "run/wandb").exists()


# -- where the parts of a run are -------------------------------------------------------------


def a_run(folder: Path, offline: bool, piece: str, run_id: str = "abc") -> SimpleNamespace:
    settings = SimpleNamespace(sync_dir=str(folder / f"{piece}-{run_id}"))
    return SimpleNamespace(id=run_id, offline=offline, url="https://w/abc", settings=settings)


@pytest.fixture
def shared(tmp_path):
    """A folder with a space, of several runs, as WANDB_DIR may be."""
    folder = tmp_path / "all runs" / "wandb"
    for name in ("111111-abc", "111112-abcd", "111113-x-abc", "111114-abc-1"):
        piece = folder / f"offline-run-20260101_{name}"
        piece.mkdir(parents=True)
        (piece / f"run-{name[7:]}.wandb").touch()
    return folder


def test_the_only_piece_of_a_run_is_named_by_itself(shared):
    run = a_run(shared, True, "offline-run-20260101_111111")
    said = start.where(run, "not logged in")
    assert said == (f"offline (not logged in); to upload it: wandb sync '{run.settings.sync_dir}'")
    assert would_upload(said) == 1


def test_of_several_pieces_those_of_other_runs_are_not_named(shared):
    piece = shared / "offline-run-20260202_000000-abc"
    piece.mkdir()
    (piece / "run-abc.wandb").touch()
    said = start.where(a_run(shared, True, "offline-run-20260202_000000"), "")
    assert said == f"offline; to upload it: wandb sync '{shared}'/offline-run-*-abc"


def test_what_is_not_uploaded_yet_is_said_when_a_run_goes_on_online(shared):
    run = a_run(shared, False, "run-20260202_000000")
    earlier = shared / "offline-run-20260101_111111-abc"
    assert start.where(run, "") == f"https://w/abc; earlier part: wandb sync '{earlier}'"
    (earlier / "run-abc.wandb.synced").touch()
    assert start.where(run, "") == "https://w/abc"


def test_two_pieces_of_one_second_are_both_named(shared):
    run = a_run(shared, True, "")
    run.settings.sync_dir = f"{shared}/offline-run-20260101_111111-abc-1"
    Path(run.settings.sync_dir).mkdir()
    Path(run.settings.sync_dir, "run-abc.wandb").touch()
    assert would_upload(start.where(run, "")) == 2


# -- with a server ----------------------------------------------------------------------------


@pytest.fixture
def online(monkeypatch):
    """W&B as in a new process with a key; it reads its environment once."""
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    yield monkeypatch
    wandb.teardown()


@pytest.fixture
def chosen(online):
    """Write what ``wandb offline`` and such leave in the working directory."""
    settings = Path("wandb/settings").absolute()
    settings.parent.mkdir(exist_ok=True)
    yield settings.write_text
    settings.unlink()


def attempt(root: Path) -> tuple[Any, str]:
    arguments = {"id": "abc", "dir": root, "project": None}
    return start.open_run("online", root, arguments)


def test_only_the_attempt_itself_is_removed(tmp_path, online, capsys):
    def init(mode, **kwargs):
        if mode == "offline":
            return "a run"
        for name in ("111111-abc", "111111-abcd", "111111-x-abc"):
            (tmp_path / f"wandb/run-20260101_{name}").mkdir(parents=True)
        raise TimeoutError("no answer")

    online.setattr("wandb.init", init)
    assert attempt(tmp_path) == ("a run", "could not connect: no answer")
    left = {path.name[20:] for path in tmp_path.glob("wandb/run-*")}
    assert left == {"abcd", "x-abc"}
    assert capsys.readouterr().out == ""


def test_at_a_terminal_a_connection_that_begins_is_said(tmp_path, online, capsys):
    online.setattr("wandb.init", lambda **kwargs: "a run")
    online.setattr(sys.stdout, "isatty", lambda: True)
    assert attempt(tmp_path) == ("a run", "")
    assert capsys.readouterr().out == "W&B: connecting...\n"


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_online_counts_more_than_what_was_once_chosen(tmp_path, chosen, online, mode):
    chosen(f"[default]\nmode = {mode}\n")
    online.setattr("wandb.init", lambda mode, **kwargs: mode)
    assert attempt(tmp_path) == ("online", "")


def test_what_wandb_offline_chose_is_followed_and_said(tmp_path, chosen, capsys):
    chosen("[default]\nmode = offline\n")
    fit(WandB(tmp_path / "run"))
    said = "W&B: offline (`wandb offline` chose it); to upload it: wandb sync "
    assert said in capsys.readouterr().out
    assert len(pieces(tmp_path / "run")) == 1


def test_what_wandb_disabled_chose_leaves_no_trace(tmp_path, chosen, capfd):
    chosen("[default]\nmode = disabled\n")
    fit(WandB(tmp_path / "run"))
    assert "W&B" not in "".join(capfd.readouterr())
    assert not (tmp_path / "run/wandb").exists()


def test_without_options_the_environment_and_wandb_init_say_what_a_run_is(tmp_path, chosen, online):
    chosen("[default]\nproject = theirs\n")
    online.setenv("WANDB_JOB_TYPE", "search")
    fit(WandB(tmp_path / "run", "offline"))
    run = the_run(records(pieces(tmp_path / "run")[0]))
    assert (run["project"], run["job_type"]) == ("theirs", "search")


class Answer(BaseHTTPRequestHandler):
    """As much of a server as it takes to begin a run and to receive its rows."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.received.append((self.path, body))
        if self.server.hangs.is_set():
            self.server.ends.wait()
        request = json.loads(body) if self.path == "/graphql" else {}
        name = request.get("variables", {}).get("name", "")
        project = {"id": "p", "name": "imgsynth", "entity": {"id": "e", "name": "me"}}
        run = {"id": "r", "name": name, "config": "{}", "sweepName": "", "project": project}
        answers = {
            "RunResumeStatus": {"model": {**project, "bucket": None}},
            "UpsertBucket": {"upsertBucket": {"bucket": run, "inserted": True}},
            "CreateRunFiles": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}},
        }
        asked = [data for word, data in answers.items() if word in request.get("query", "")]
        answer = json.dumps({"data": asked[0] if asked else {}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(online):
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.received, server.hangs, server.ends = [], threading.Event(), threading.Event()
        server.daemon_threads = True
        online.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.ends.set()
        server.shutdown()
        thread.join()


def test_online_the_server_gets_the_run_and_its_rows(tmp_path, server, online, capsys):
    online.setenv("HOME", str(tmp_path / "home"))
    fit(WandB(tmp_path / "run"), 8)  # a key is there: online
    assert not list((tmp_path / "home").rglob("*.log"))
    run_id = (tmp_path / "run/wandb/run-id").read_text().split()[0]
    address = f"http://127.0.0.1:{server.server_port}/me/imgsynth/runs/{run_id}"
    assert f"W&B: {address}\n" in capsys.readouterr().out
    begun = next(json.loads(body) for _, body in server.received if "UpsertBucket" in body)
    assert begun["variables"]["groupName"] == "HingeGAN-Arrays"
    assert begun["variables"]["jobType"] == "train"
    streamed = [json.loads(body) for path, body in server.received if "file_stream" in path]
    lines = [
        json.loads(line)
        for sent in streamed
        for line in sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
    ]
    assert [line["images_seen"] for line in lines] == [4, 8]
    assert streamed[-1]["complete"]
    assert streamed[-1]["exitcode"] == 0


def test_a_server_that_stops_answering_does_not_hold_up_the_end(
    tmp_path, server, monkeypatch, capsys
):
    class HangsUp(Callback):
        def on_fit_end(self, *args):  # after the checkpoint was uploaded
            server.hangs.set()

    monkeypatch.setattr(start, "FINISH_SECONDS", 1)
    assert fit(WandB(tmp_path / "run"), callbacks=(HangsUp(),)).images_seen == 8
    (piece,) = (tmp_path / "run/wandb").glob("run-2*")
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("W&B: Timed out finishing run: the end was not uploaded; later: ")
    assert said.endswith(f": wandb sync --include-online {piece}")
    assert would_upload(said) == 1


def test_an_interrupt_while_it_connects_ends_it_soon_and_leaves_nothing(tmp_path, server):
    server.hangs.set()
    main = threading.main_thread().ident

    def interrupt():
        while not server.received:
            time.sleep(0.02)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        attempt(tmp_path)
    thread.join()
    assert time.monotonic() - began < 10  # its own limit is 20 s
    assert not list(tmp_path.glob("wandb/*run-2*"))


# -- checkpoints ------------------------------------------------------------------------------


class Uploads(Broken):
    def log_artifact(self, artifact, aliases):
        self.artifact, self.aliases = artifact, aliases
        return SimpleNamespace(wait=lambda timeout: setattr(self, "timeout", timeout))


def test_a_checkpoint_is_an_artifact_of_the_run_and_is_not_copied(tmp_path):
    path = tmp_path / "images-000000000008.ckpt"
    path.write_bytes(b"a checkpoint")
    logger = WandB(tmp_path)
    logger._experiment = run = Uploads()
    logger.log_checkpoint(path)
    assert (run.artifact.type, run.artifact.name) == ("model", "model-abc")
    assert run.aliases == ["best", "latest"]
    entry = run.artifact.manifest.entries["model.ckpt"]
    assert Path(entry.local_path) == path
    assert entry.skip_cache
    assert run.artifact.metadata == {"original_filename": path.name}
    assert run.timeout == 60


def test_a_checkpoint_that_cannot_be_uploaded_does_not_end_a_run(tmp_path, capsys):
    logger = WandB(tmp_path)
    logger._experiment = Uploads()
    logger.log_checkpoint(tmp_path / "missing.ckpt")
    assert "missing.ckpt was not uploaded" in capsys.readouterr().err


def test_offline_no_checkpoint_is_taken(offline):
    kinds = [r["artifact"]["type"] for r in offline.records if r["type"] == "artifact"]
    assert "model" not in kinds  # the table is one
    assert not list(offline.folder.rglob("wandb/**/*.ckpt"))
