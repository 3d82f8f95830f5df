"""The front answers at once: under a second of CPU time, without torch."""

import json
import resource
import subprocess
import sys

import pytest

import imgsynth

HEAVY = ["torch", "lightning", "numpy", "jsonargparse", "wandb", "kornia"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--help",
        "--version",
        "list",
        "list recipes",
        "help HingeGAN",
        "help Trainer",
        "fit --help",
        "resume --help",
        "sample --help",
        "reconstruct --help",
        "likelihood --help",
        "list --help",
        "smaple",
        "fit --sed 1",
        "fit -c no_such_recipe",
        "sample runs/no_such_run",
        "reconstruct runs/no_such_run",
        "likelihood runs/no_such_run",
    ],
)
def test_the_front_takes_less_than_a_second_and_no_torch(line, tmp_path):
    code = (
        "import json, sys\n"
        "from imgsynth.cli import main\n"
        f"code = main({line.split()!r})\n"
        f"print(json.dumps([code, sorted(set({HEAVY!r}) & set(sys.modules))]))\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wrong = line.startswith(("smaple", "fit --sed", "fit -c")) or "no_such_run" in line
    assert json.loads(done.stdout.splitlines()[-1]) == [2 if wrong else 0, []]
    assert seconds < 1.0


def test_the_package_runs_as_a_module(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "imgsynth", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout == f"imgsynth {imgsynth.__version__}\n"


def test_the_overview_names_every_command(run):
    from imgsynth.cli import COMMANDS

    out = run("--help").out
    assert all(f"imgsynth {name}" in out for name in COMMANDS)


def test_the_help_of_fit_names_every_group_of_options(run):
    from imgsynth.cli.parser import build_parser, known_options

    out = run("fit", "--help").out
    groups = {name.partition(".")[0] for name in known_options(build_parser())}
    assert all(f"--{group}" in out for group in groups)


def test_output_that_nobody_reads_is_no_error(tmp_path):
    done = subprocess.run(
        f"{sys.executable} -m imgsynth list | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stderr == ""
