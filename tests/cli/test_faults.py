"""What goes wrong while a run goes on, or with what it left behind."""

import os
import resource
from pathlib import Path

import pytest
import torch

from imgsynth.loading import find_checkpoint, read_checkpoint


@pytest.fixture
def trained(here, run):
    """A finished run of the working directory."""
    assert run("fit", "-c", "tiny.yaml", "--name", "trained", "--model", "LSGAN").code == 0
    return Path("runs/trained")


def assert_explained(outcome, *fragments):
    assert outcome.code == 2, outcome.err
    lines = [line for line in outcome.err.splitlines() if "images/s" not in line]
    errors = lines[next(i for i, line in enumerate(lines) if line.startswith("imgsynth:")) :]
    assert len(errors) <= 3
    for fragment in fragments:
        assert fragment in " ".join(errors)
    assert "Traceback" not in outcome.err


def test_nan_stops_the_run_names_the_term_and_keeps_the_last_good_checkpoint(trained, run):
    before = find_checkpoint(trained)
    content = before.read_bytes()
    config = trained / "config.yaml"
    config.write_text(config.read_text().replace("real_label: 1.0", "real_label: .nan"))
    assert ".nan" in config.read_text()
    outcome = run("resume", "runs/trained", "--images", "100k")
    assert_explained(outcome, "train/discriminator/real became nan", "Checkpoints are from before")
    assert find_checkpoint(trained) == before
    assert before.read_bytes() == content


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(trained, run):
    before = find_checkpoint(trained)
    content = before.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, limits[1]))
    try:
        outcome = run("resume", "runs/trained", "--images", "1k")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_explained(outcome, "Could not save", "File too large", before.name)
    assert before.read_bytes() == content
    assert read_checkpoint(trained)["imgsynth"]["updates"]
    assert run("resume", "runs/trained", "--images", "1k").code == 0


def test_a_folder_without_write_permission_is_named(here, run, monkeypatch):
    Path("locked").mkdir(mode=0o500)
    if os.geteuid() == 0:  # root may write everywhere

        def refuse(self, *_, **__):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
    outcome = run("fit", "-c", "tiny.yaml", "--out", "locked")
    assert_explained(outcome, "Permission denied", "locked")


def test_a_checkpoint_of_another_class_is_refused(trained, run):
    config = trained / "config.yaml"
    text = config.read_text()
    start, end = text.index("    real_label"), text.index("    augment")
    text = (text[:start] + text[end:]).replace("imgsynth.methods.LSGAN", "imgsynth.methods.GAN")
    config.write_text(text)
    outcome = run("resume", "runs/trained", "--images", "100k")
    assert_explained(outcome, "The checkpoint holds imgsynth.methods.LSGAN", "imgsynth.methods.GAN")


def test_a_truncated_checkpoint_is_refused_and_the_one_before_is_named(trained, run):
    newest = find_checkpoint(trained)
    newest.write_bytes(newest.read_bytes()[:500])
    outcome = run("resume", "runs/trained", "--images", "100k")
    before = sorted(newest.parent.iterdir())[-2]
    assert_explained(outcome, newest.name, "truncated", f"imgsynth resume {before}")
    assert run("resume", str(before)).code == 0
    assert read_checkpoint(trained)["imgsynth"]["images_seen"] == 128


class Bomb:
    """Would write a file if it were unpickled."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("command", ["sample", "resume"])
def test_a_checkpoint_with_pickled_objects_is_refused_and_nothing_of_it_is_run(
    trained, run, command
):
    torch.save({"state_dict": {}, "imgsynth": Bomb()}, find_checkpoint(trained))
    outcome = run(command, "runs/trained")
    assert_explained(outcome, "refused, nothing of it was run", "system")
    assert not Path("exploded").exists()
