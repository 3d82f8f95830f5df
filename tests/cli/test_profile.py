import re
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.profilers import PassThroughProfiler

from imgsynth.callbacks import GracefulStop, StepProfiler

ROW = re.compile(r"^  (\w[\w ]*?) +(\d+\.\d{3}) ms +(\d+\.\d) %", re.MULTILINE)
PARTS = {"data", "fakes", "discriminator", "generator", "optimiser", "averages", "record"}


@pytest.fixture
def profilers(monkeypatch):
    """The profilers of the runs that follow."""
    seen = []
    monkeypatch.setattr(GracefulStop, "on_train_start", lambda self, t, m: seen.append(t.profiler))
    return seen


def test_profile_shows_parts_that_add_up_to_the_step(here, run):
    code, out, err = run("fit", "-c", "tiny.yaml", "--images", "768", "--profile")
    assert code == 0, err
    assert "(mean of 7 steps, the first 5 left out):" in out
    rows = {part: (float(ms), float(share)) for part, ms, share in ROW.findall(out)}
    assert rows.keys() == {*PARTS, "other", "step"}
    step, all_of_it = rows.pop("step")
    assert sum(ms for ms, _ in rows.values()) == pytest.approx(step, abs=0.0005 * len(rows) + 1e-6)
    assert sum(share for _, share in rows.values()) == pytest.approx(100, abs=0.05 * len(rows))
    assert all_of_it == 100
    rate = re.search(r"^([\d,]+) images/s$", out, re.MULTILINE)[1].replace(",", "")
    assert int(rate) == pytest.approx(64 / (step / 1e3), rel=0.01)
    assert out.index("images/s") < out.index("Trained on")


def test_without_the_flag_nothing_is_measured(here, run, profilers):
    out = run("fit", "-c", "tiny.yaml").out
    assert [type(profiler) for profiler in profilers] == [PassThroughProfiler]
    assert "Where the time" not in out


def test_the_flag_belongs_to_the_run_and_not_to_its_configuration(here, run, profilers):
    run("fit", "-c", "tiny.yaml", "--profile")
    config = yaml.safe_load(Path("runs/tiny/config.yaml").read_text())
    assert config["trainer"]["profiler"] is None
    assert "Where the time" not in run("resume", "runs/tiny", "--images", "192").out
    assert "Where the time" in run("resume", "runs/tiny", "--images", "256", "--profile").out
    types = [type(profiler) for profiler in profilers]
    assert types == [StepProfiler, PassThroughProfiler, StepProfiler]


def test_a_second_profiler_is_refused(here, run):
    code, _, err = run("fit", "-c", "tiny.yaml", "--profile", "--trainer.profiler", "simple")
    assert code == 2
    assert "--profile and --trainer.profiler both say how" in err
    assert "Expected one of the two." in err
    assert not Path("runs").exists()
