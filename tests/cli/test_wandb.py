"""The command line with W&B, in processes of their own: W&B reads its environment once."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from processes import Command, free_port, ranks
from wandb_files import history, pieces, records, values

from imgsynth.cli import runs
from imgsynth.loggers import read_rows

CREATED = re.compile(r"to upload it: wandb sync (\S+)\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    """A repository with a configuration, and an empty home folder."""
    place = tmp_path_factory.mktemp("place")
    (place / "tiny.yaml").write_text(tiny)
    (place / "home").mkdir()
    git = ["git", "-C", str(place), "-c", "user.email=a@b.c", "-c", "user.name=a"]
    for words in (["init", "-q"], ["add", "tiny.yaml"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    return place


def wandb(place: Path, *arguments: object, code: int = 0, **environment: str) -> str:
    """Run ``imgsynth`` as without an account; return what it printed."""
    ours = {"HOME": str(place / "home"), "NETRC": "", "WANDB_MODE": "", "WANDB_API_KEY": ""}
    with Command(place, *arguments, **{**ours, **environment}) as command:
        assert command.wait() == code, command.text()
        return command.text()


@pytest.fixture(scope="module")
def first(place: Path) -> str:
    """A run without an account, with empty variables, without a terminal."""
    return wandb(
        place,
        *("fit", "-c", "tiny.yaml", "--name", "first"),
        *("--wandb.tags", "mine", "--wandb.project", "ours"),
        WANDB_SILENT="",
        WANDB_TAGS="",
        WANDB_RUN_GROUP="",
    )


def test_without_an_account_a_run_is_written_offline_and_one_line_says_so(place, first):
    (piece,) = pieces(place / "runs/first")
    assert first.splitlines()[:2] == [
        "Run folder: runs/first",
        f"W&B: offline (not logged in); to upload it: wandb sync {piece.relative_to(place)}",
    ]
    assert first.splitlines()[2].startswith("Trained on 128 images.")


def test_the_run_offline_says_what_the_record_says(place, first):
    found = records(pieces(place / "runs/first")[0])
    rows = [row for row in history(found) if "train/generator/adversarial" in row]
    ours = read_rows(place / "runs/first")
    assert [row["images_seen"] for row in rows] == [64, 128]
    for row, our in zip(rows, ours, strict=True):
        assert {k: v for k, v in our.items() if "/" in k}.items() <= row.items()
        assert abs(row["seconds"] - our["seconds"]) < 0.5
    run = next(record["run"] for record in found if record["type"] == "run")
    assert (run["run_group"], run["job_type"]) == ("HingeGAN-Digits", "train")
    assert (run["display_name"], run["project"]) == ("first", "ours")
    assert run["tags"] == ["HingeGAN", "Digits", "mine"]
    assert run["run_id"] == (place / "runs/first/wandb/run-id").read_text().split()[0]


def test_its_configuration_is_that_of_the_run_folder(place, first):
    config = values(records(pieces(place / "runs/first")[0]))
    ours = yaml.safe_load((place / "runs/first/config.yaml").read_text())
    assert {name: config[name] for name in ours} == ours
    git = json.loads((place / "runs/first/run.json").read_text())["git"]
    assert config["git"] == {"commit": git["commit"], "dirty": False}
    assert config["total_images"] == 128


def test_the_home_folder_stays_empty(place, first):
    assert not list((place / "home").rglob("*wandb*"))


def test_training_seconds_do_not_count_the_start_of_wandb(place, first):
    rows = history(records(pieces(place / "runs/first")[0]))
    assert rows[0]["images_seen"] == 0
    assert rows[0]["seconds"] < 0.3


def test_a_resumed_run_goes_on_in_wandb(place, first):
    text = wandb(place, "resume", "runs/first", "--images", "192", WANDB_MODE="dryrun")
    used = (place / "runs/first/wandb/run-id").read_text().split()[0]
    assert f"wandb sync runs/first/wandb/offline-run-*-{used}\n" in text
    found = [records(piece) for piece in pieces(place / "runs/first")]
    ids = {record["run"]["run_id"] for piece in found for record in piece if "run" in record}
    assert (len(found), len(ids)) == (2, 1)
    seen = {row["images_seen"] for piece in found for row in history(piece)}
    assert seen == {0, 64, 128, 192}


def test_an_id_in_use_is_refused_and_named(place, first):
    used = (place / "runs/first/wandb/run-id").read_text().split()[0]
    fit = ("fit", "-c", "tiny.yaml", "--name", "thief", "--wandb.mode", "offline")
    text = wandb(place, *fit, code=2, WANDB_RUN_ID=used)
    assert f"is that of {(place / 'runs/first').resolve()} already" in text
    assert "runs/thief" in text.splitlines()[0]
    assert not runs.is_taken(place / "runs/thief")


def test_without_a_connection_an_online_run_is_written_offline(place):
    key = {"WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "1"}
    fit = ("fit", "-c", "tiny.yaml", "--name", "closed", "--wandb.mode", "online")
    text = wandb(place, *fit, WANDB_BASE_URL=f"http://127.0.0.1:{free_port()}", **key)
    said = [line for line in text.splitlines() if "W&B" in line or "wandb" in line]
    assert len(said) == 1
    assert said[0].startswith("W&B: offline (could not connect: ")
    assert CREATED.search(text)
    rows = history(records(pieces(place / "runs/closed")[0]))
    assert {row["images_seen"] for row in rows} == {0, 64, 128}
    assert not list((place / "runs/closed/wandb").glob("run-2*"))


@pytest.mark.ddp
def test_of_processes_that_train_together_the_first_is_the_run(place, tiny):
    fit = ("fit", "-c", "tiny.yaml", "--name", "two", "--wandb.mode", "offline")
    commands = ranks(place, *fit)
    texts = []
    with commands[0], commands[1]:
        for command in commands:
            assert command.wait() == 0, command.text()
            texts.append(command.text())
    assert [text.count("W&B: offline") for text in texts] == [1, 0]
    (piece,) = pieces(place / "runs/two")
    rows = [row for row in history(records(piece)) if "train/generator/adversarial" in row]
    assert [row["images_seen"] for row in rows] == [128]


def test_disabled_by_the_environment_nothing_of_wandb_is_there(here, run):
    assert os.environ["WANDB_MODE"] == "disabled"
    code, out, err = run("fit", "-c", "tiny.yaml")
    assert (code, err) == (0, "")
    assert "W&B" not in out
    assert not Path("runs/tiny/wandb").exists()


def test_what_a_failed_start_left_of_wandb_does_not_take_a_name(here):
    Path("runs/a/wandb/offline-run").mkdir(parents=True)
    Path("runs/a/config.yaml").touch()
    assert not runs.is_taken(Path("runs/a"))


def test_its_options_are_shown_and_mistakes_in_them_named(here, run):
    out = run("help", "WandB").out
    assert "--wandb.mode" in out
    assert "--wandb.folder" not in out
    assert "`imgsynth help WandB`" in run("fit", "-c", "tiny.yaml", "--wandb", "offline").err
    assert "online" in run("fit", "-c", "tiny.yaml", "--wandb.mode", "on").err
    refused = run("fit", "-c", "tiny.yaml", "--wandb.project", "me/ours", "--name", "refused")
    assert "project must have at most 128 characters" in refused.err
    assert refused.code == 2
    assert not Path("runs/refused").exists()
    assert run("fit", "-c", "tiny.yaml", "--wandb.tags", "[a, '']", "--name", "refused").code == 2
    assert "--wandb.tags" in run("fit", "-c", "tiny.yaml", "--wandb.tag", "a").err
