import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TINY = """\
images: 128
model:
  class_path: HingeGAN
  init_args:
    generator: {class_path: MLPGenerator, init_args: {width: 4, depth: 1, latent_dim: 4}}
    discriminator: {class_path: MLPDiscriminator, init_args: {width: 4, depth: 1}}
data: {class_path: Digits}
trainer: {accelerator: cpu, log_every_n_steps: 1, enable_progress_bar: false}
samples: {gif: false}
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module", autouse=True)
def _module_as_it_was() -> Iterator[None]:
    yield from _restored()


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    yield from _restored()


def _restored() -> Iterator[None]:
    """The command line sets a seed for its process, and makes its directory importable.

    Lightning ignores Ctrl-C for good once it was interrupted before training.
    """
    environment, path = dict(os.environ), list(sys.path)
    interrupt = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, interrupt)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path


@pytest.fixture(scope="session")
def tiny() -> str:
    """A configuration that trains in no time: two updates."""
    return TINY


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a configuration, ``tiny.yaml``."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command line in this process."""
    from imgsynth.cli import main

    def run_it(*argv: str) -> Result:
        capsys.readouterr()
        code = main(list(argv))
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run_it
