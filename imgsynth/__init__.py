"""imgsynth: a PyTorch Lightning research framework for image synthesis.

Importing it costs nothing: submodules and the names below are found when they are first used, so
that the command line answers ``--help`` without loading torch.

Example:
    >>> import imgsynth
    >>> # method = imgsynth.load("runs/demo")
    >>> # images = method.sample(100, labels=3, seed=1)
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgsynth.judging import judge
    from imgsynth.loading import load, trained_on, warm_start

__version__ = "0.1.0.dev0"

__all__ = ["__version__", "judge", "load", "trained_on", "warm_start"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "judge":
        return import_module("imgsynth.judging").judge
    if name in {"load", "trained_on", "warm_start"}:
        return getattr(import_module("imgsynth.loading"), name)
    if not name.startswith("_") and find_spec(f"imgsynth.{name}"):
        return import_module(f"imgsynth.{name}")
    raise AttributeError(f"module 'imgsynth' has no attribute {name!r}")
