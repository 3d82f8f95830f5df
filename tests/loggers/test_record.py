import json
import resource
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from imgsynth.callbacks import Checkpoint, Length
from imgsynth.data import Arrays
from imgsynth.describe import build
from imgsynth.images import to_uint8
from imgsynth.loggers import Record, read_rows, sheet_path
from imgsynth.methods import HingeGAN
from imgsynth.networks import MLPDiscriminator, MLPGenerator

SHAPE = (1, 8, 8)


def make_gan() -> HingeGAN:
    torch.manual_seed(0)
    generator = MLPGenerator(SHAPE, latent_dim=4, width=4, depth=1)
    return HingeGAN(generator, MLPDiscriminator(SHAPE, width=4, depth=1))


def make_data() -> Arrays:
    pixels = torch.randint(0, 256, (20, 8, 8), generator=torch.Generator().manual_seed(0))
    return Arrays(pixels.to(torch.uint8), batch_size=4, test_fraction=0.2)


def fit(folder: Path, images: int, **kwargs) -> tuple[HingeGAN, Record]:
    method, record = make_gan(), Record(folder)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=record,
        callbacks=[Length(images), Checkpoint(4, keep=0)],
        max_epochs=-1,
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, make_data(), **kwargs)
    return method, record


def checkpoint(folder: Path, images: int) -> Path:
    return folder / "checkpoints" / f"images-{images:012d}.ckpt"


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]


def write(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "record.jsonl").write_text(text)


# -- rows -------------------------------------------------------------------------------------


def test_a_row_a_report_with_images_updates_seconds_and_the_methods_means(tmp_path):
    method, record = fit(tmp_path / "run", 24)
    rows = read_rows(tmp_path / "run")
    assert [(row["images"], row["updates"]) for row in rows] == [(8, 2), (16, 4), (24, 6)]
    assert sorted(rows[0]) == [
        "images",
        "seconds",
        "train/discriminator/fake",
        "train/discriminator/real",
        "train/generator/adversarial",
        "updates",
    ]
    for key, value in method.latest.items():
        assert rows[-1][key.removeprefix("progress/")] == value
    seconds = [row["seconds"] for row in rows]
    assert 0 < seconds[0] <= seconds[1] <= seconds[2] <= record.seconds < 60
    assert rows == lines(tmp_path / "run")


def test_a_resumed_run_reads_like_the_uninterrupted_one(tmp_path):
    fit(tmp_path / "whole", 48)
    fit(tmp_path / "run", 32)
    before = (tmp_path / "run" / "record.jsonl").read_bytes()
    file = checkpoint(tmp_path / "run", 20)  # in the middle of a window
    fit(tmp_path / "run", 48, ckpt_path=file, weights_only=True)
    assert (tmp_path / "run" / "record.jsonl").read_bytes().startswith(before)

    whole, resumed = read_rows(tmp_path / "whole"), read_rows(tmp_path / "run")
    assert [row["images"] for row in resumed] == [8, 16, 24, 32, 40, 48]
    seconds = [row.pop("seconds") for row in resumed]
    assert seconds == sorted(seconds)
    for row in whole:
        del row["seconds"]
    assert resumed == whole


def test_the_clock_goes_on_from_where_training_ended(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("imgsynth.loggers.record.time.monotonic", lambda: now[0])
    update = HingeGAN._updated

    def updated(method, images):
        now[0] += 10
        update(method, images)

    monkeypatch.setattr(HingeGAN, "_updated", updated)
    fit(tmp_path / "run", 20)  # 5 updates: the row of the last is still open
    now[0] = 5000.0
    fit(tmp_path / "run", 32, ckpt_path=checkpoint(tmp_path / "run", 20), weights_only=True)
    seconds = [row["seconds"] for row in read_rows(tmp_path / "run")]
    assert seconds == [20.0, 40.0, 60.0, 80.0]


def test_each_start_is_noted_with_its_end(tmp_path):
    fit(tmp_path / "run", 20)
    file = checkpoint(tmp_path / "run", 12)
    fit(tmp_path / "run", 32, ckpt_path=file, weights_only=True)
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert [start["images"] for start in starts] == [0, 12]
    assert [start["end"]["images"] for start in starts] == [20, 32]
    assert [start["end"]["status"] for start in starts] == ["success", "success"]


def test_a_failed_start_is_noted_as_such(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(HingeGAN, "generator_loss", broken)
    with pytest.raises(RuntimeError, match="broken"):
        fit(tmp_path / "run", 20)
    [start] = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert start["end"]["status"] == "failed"


def test_the_resumption_itself_is_a_row_of_the_file(tmp_path):
    fit(tmp_path / "run", 32)
    file = checkpoint(tmp_path / "run", 20)
    fit(tmp_path / "run", 24, ckpt_path=file, weights_only=True)
    rows = lines(tmp_path / "run")
    [event] = [row for row in rows if "event" in row]
    assert (event["event"], event["images"], event["updates"]) == ("resume", 20, 5)
    assert event["seconds"] == pytest.approx(rows[1]["seconds"], abs=0.1)  # of 16 images
    assert [row["images"] for row in rows] == [8, 16, 24, 32, 20, 24]


def test_a_new_start_in_an_old_folder_leaves_out_all_that_was_before(tmp_path):
    fit(tmp_path / "run", 32)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    fit(tmp_path / "run", 16)
    assert len(lines(tmp_path / "run")) == 4 + 1 + 2
    assert [row["images"] for row in read_rows(tmp_path / "run")] == [8, 16]
    assert read_rows(tmp_path / "run") == lines(tmp_path / "run")[-2:]


def test_rows_beyond_a_resumption_are_left_out_also_when_it_happened_twice(tmp_path):
    rows = [
        {"images": 10, "a": 1},
        {"images": 20, "a": 2},
        {"images": 30, "a": 3},
        {"event": "resume", "images": 20},
        {"images": 30, "a": 4},
        {"images": 40, "a": 5},
        {"event": "resume", "images": 10},
        {"event": "resume", "images": 15},
        {"images": 20, "a": 6},
    ]
    write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    expected = [{"images": 10, "a": 1}, {"images": 20, "a": 6}]
    assert read_rows(tmp_path) == read_rows(tmp_path / "record.jsonl") == expected


def test_rows_of_other_terms_at_the_same_images_stand_side_by_side(tmp_path):
    rows = [
        {"images": 10, "train/a": 1},
        {"images": 10, "val/fid": 2},
        {"images": 10, "val/fid": 3},
    ]
    write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    assert read_rows(tmp_path) == [rows[0], rows[2]]


@pytest.mark.parametrize(
    "torn", ['{"images": 20, "a"', "{", '{"images": 20, "a": "', "\0\0\0", "[1, 2]", "7", "{}"]
)
def test_torn_and_foreign_lines_are_left_out(tmp_path, torn):
    write(tmp_path, '{"images": 10, "a": 1}\n' + torn)
    assert read_rows(tmp_path) == [{"images": 10, "a": 1}]
    write(tmp_path, torn + '\n{"images": 10, "a": 1}\n')
    assert read_rows(tmp_path) == [{"images": 10, "a": 1}]


def test_a_resumed_run_ends_a_torn_line_before_it_writes(tmp_path):
    fit(tmp_path / "run", 16)
    with (tmp_path / "run" / "record.jsonl").open("a") as file:
        file.write('{"images": 24, "upd')
    file = checkpoint(tmp_path / "run", 16)
    fit(tmp_path / "run", 24, ckpt_path=file, weights_only=True)
    assert [row["images"] for row in read_rows(tmp_path / "run")] == [8, 16, 24]


def test_a_reader_gets_whole_rows_only_while_the_run_writes(tmp_path):
    record = Record(tmp_path / "run")
    metrics = {f"train/term{i}": 0.123456789 * i for i in range(20)}
    record.log_metrics({**metrics, "progress/images": 0}, step=0)

    def write_rows():
        for images in range(1, 400):
            record.log_metrics({**metrics, "progress/images": images}, step=images)

    writer = threading.Thread(target=write_rows)
    writer.start()
    counts = []
    while writer.is_alive() or not counts:
        # The file itself may end within a row: the system writes across pages in steps.
        rows = read_rows(tmp_path / "run")
        assert all(row.keys() == rows[0].keys() for row in rows)
        assert [row["images"] for row in rows] == list(range(len(rows)))
        counts.append(len(rows))
    writer.join()
    assert counts == sorted(counts)
    assert len(read_rows(tmp_path / "run")) == 400


def test_a_value_that_is_not_finite_becomes_null(tmp_path):
    record = Record(tmp_path)
    record.log_metrics({"a": float("nan"), "b": float("-inf"), "c": torch.tensor(1.5)}, step=3)
    [row] = read_rows(tmp_path)
    del row["seconds"]
    assert row == {"images": 0, "updates": 3, "a": None, "b": None, "c": 1.5}
    assert "NaN" not in (tmp_path / "record.jsonl").read_text()


def test_terms_logged_without_progress_take_the_methods_counts(tmp_path):
    _, record = fit(tmp_path / "run", 24)
    record.log_metrics({"val/score": 0.5}, step=999)
    row = read_rows(tmp_path / "run")[-1]
    assert (row["images"], row["updates"], row["val/score"]) == (24, 6, 0.5)


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    record = Record(tmp_path / "run")
    record.log_metrics({"a": 1.0}, step=1)
    record.log_images("samples", torch.zeros(1, 8, 8), 0)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_explained_and_the_torn_row_left_out(tmp_path):
    record = Record(tmp_path)
    record.log_metrics({"a": 1.0}, step=1)
    size = (tmp_path / "record.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="only a part of the row was written") as partial:
            record.log_metrics({"a": 2.0}, step=2)
        with pytest.raises(OSError, match="File too large") as nothing:
            record.log_metrics({"a": 3.0}, step=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for caught in (partial, nothing):
        assert str(caught.value).startswith(f"Could not append to {tmp_path}/record.jsonl: ")
    assert [row["a"] for row in read_rows(tmp_path)] == [1.0]


def test_a_folder_without_a_record_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no record\.jsonl in .*; give the folder of a run"
    ):
        read_rows(tmp_path)


# -- provenance -------------------------------------------------------------------------------


def test_run_json_tells_how_the_run_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/train.py", "--width", "4"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    fit(tmp_path / "run", 16)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["command"] == ["train.py", "--width", "4"]
    assert run["seed"] == 5
    assert run["total_images"] == 16
    assert run["threads"] == torch.get_num_threads()
    assert run["versions"]["torch"] == torch.__version__.split("+")[0]
    assert set(run["versions"]) == {
        *("python", "imgsynth", "torch", "torchvision", "lightning", "kornia", "numpy", "cuda")
    }
    assert run["device"].startswith("cpu")

    rebuilt = build(run["method"])
    assert isinstance(rebuilt, HingeGAN)
    assert rebuilt.generator.latent_dim == 4
    data = make_data()
    assert run["data"]["class_path"] == "imgsynth.data.Arrays"
    assert run["data"]["splits"] == {
        "train": {"images": 16, "fingerprint": data.fingerprint_of("train")},
        "test": {"images": 4, "fingerprint": data.fingerprint_of("test")},
    }


def test_each_start_is_added_to_run_json(tmp_path):
    fit(tmp_path / "run", 16)
    file = checkpoint(tmp_path / "run", 12)
    fit(tmp_path / "run", 24, ckpt_path=file, weights_only=True)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [(start["images"], start["updates"]) for start in run["starts"]] == [(0, 0), (12, 3)]
    assert run["total_images"] == 24


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_and_what_was_changed_since_are_kept(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    monkeypatch.chdir(source)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "someone")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "someone")

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], check=True, capture_output=True, text=True)
        return done.stdout

    git("init", "-q")
    (source / "model.py").write_text("width = 8\n")
    git("add", "model.py")
    git("commit", "-qm", "first", "--no-verify", "--no-gpg-sign")
    fit(tmp_path / "clean", 8)
    clean = json.loads((tmp_path / "clean" / "run.json").read_text())["git"]
    assert clean == {
        "commit": git("rev-parse", "HEAD").strip(),
        "diff": None,
        "diff_complete": True,
    }

    (source / "model.py").write_text("width = 16\n")
    fit(tmp_path / "run", 8)
    changed = json.loads((tmp_path / "run" / "run.json").read_text())["git"]
    assert changed == {**clean, "diff": "run.diff"}
    diff = (tmp_path / "run" / "run.diff").read_text()
    assert "\n-width = 8\n+width = 16\n" in diff

    monkeypatch.setattr("imgsynth.loggers.record._LARGEST_DIFF", 20)
    file = checkpoint(tmp_path / "run", 4)
    fit(tmp_path / "run", 8, ckpt_path=file, weights_only=True)
    cut = json.loads((tmp_path / "run" / "run.json").read_text())["git"]
    assert cut == {**clean, "diff": "run-2.diff", "diff_complete": False}
    assert (tmp_path / "run" / "run-2.diff").read_text() == diff[:20]
    assert (tmp_path / "run" / "run.diff").read_text() == diff


@pytest.mark.parametrize("missing", ["git", "repository"])
def test_without_git_or_a_repository_it_goes_on(tmp_path, monkeypatch, missing):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if missing == "git":
        monkeypatch.setenv("PATH", str(tmp_path))
    fit(tmp_path / "run", 8)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["git"] is None


# -- pictures ---------------------------------------------------------------------------------


def test_a_picture_is_a_png_named_by_images_that_says_where_it_is_from(tmp_path):
    picture = torch.linspace(-1, 1, 3 * 5 * 7).view(3, 5, 7)
    record = Record(tmp_path)
    record.log_images("samples", picture, 12800, {"Seed": "7"})
    record.log_images("pairs", picture, 12800)
    with Image.open(tmp_path / "samples" / "000000012800.png") as saved:
        assert saved.text == {"Seed": "7"}
        assert np.array_equal(np.array(saved), to_uint8(picture).permute(1, 2, 0).numpy())
    assert sheet_path(tmp_path, "pairs", 12800).name == "pairs-000000012800.png"
    assert sheet_path(tmp_path, "pairs", 12800).is_file()


def test_lightning_finds_the_run_folder(tmp_path):
    record = Record(tmp_path / "digits")
    assert Path(record.save_dir, record.name, record.version) == tmp_path / "digits"
