"""imgsynth: a PyTorch Lightning research framework for image synthesis.

Importing it costs nothing: the public names below are found when they are first used, so that
the command line answers ``--help`` without loading torch.

Example:
    >>> import imgsynth
    >>> # method = imgsynth.load("runs/demo")
    >>> # images = method.sample(100, labels=3, seed=1)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgsynth.augment import RandomTranslation
    from imgsynth.data import Digits, ImageDataModule
    from imgsynth.loading import load, warm_start
    from imgsynth.methods import (
        GAN,
        LSGAN,
        WGANGP,
        AdversarialMethod,
        HingeGAN,
        Method,
        NonFiniteError,
        Sampler,
    )
    from imgsynth.networks import (
        DCGANDiscriminator,
        DCGANGenerator,
        MLPDiscriminator,
        MLPGenerator,
    )
    from imgsynth.optim import (
        SGD,
        Adam,
        AdamW,
        CosineDecay,
        LinearDecay,
        Optimizer,
        RMSprop,
        Schedule,
    )

__version__ = "0.1.0.dev0"

__all__ = [
    "GAN",
    "LSGAN",
    "SGD",
    "WGANGP",
    "Adam",
    "AdamW",
    "AdversarialMethod",
    "CosineDecay",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "Digits",
    "HingeGAN",
    "ImageDataModule",
    "LinearDecay",
    "MLPDiscriminator",
    "MLPGenerator",
    "Method",
    "NonFiniteError",
    "Optimizer",
    "RMSprop",
    "RandomTranslation",
    "Sampler",
    "Schedule",
    "__version__",
    "load",
    "warm_start",
]

_PUBLIC = {
    "imgsynth.loading": ("load", "warm_start"),
    "imgsynth.augment": ("RandomTranslation",),
    "imgsynth.data": ("Digits", "ImageDataModule"),
    "imgsynth.methods": (
        "GAN",
        "LSGAN",
        "WGANGP",
        "AdversarialMethod",
        "HingeGAN",
        "Method",
        "NonFiniteError",
        "Sampler",
    ),
    "imgsynth.networks": (
        "DCGANDiscriminator",
        "DCGANGenerator",
        "MLPDiscriminator",
        "MLPGenerator",
    ),
    "imgsynth.optim": (
        "SGD",
        "Adam",
        "AdamW",
        "CosineDecay",
        "LinearDecay",
        "Optimizer",
        "RMSprop",
        "Schedule",
    ),
}
_SUBMODULES = (
    "augment",
    "callbacks",
    "data",
    "images",
    "loggers",
    "losses",
    "methods",
    "networks",
    "optim",
    "seeding",
    "testing",
    "types",
)
_WHERE = {name: module for module, names in _PUBLIC.items() for name in names}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    if name in _SUBMODULES:
        return import_module(f"imgsynth.{name}")
    raise AttributeError(f"module 'imgsynth' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_SUBMODULES})
