"""What the callbacks share: the method they look at, the folder they write to."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from imgsynth.loggers.record import Record
from imgsynth.loggers.wandb import WandB
from imgsynth.methods.base import Method


def method_of(module: LightningModule) -> Method:
    """Return the module as a method.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(module, Method):
        raise ValueError(
            "The callbacks of imgsynth count images and need a method of imgsynth, got "
            f"{type(module).__name__}; let it inherit imgsynth.methods.Method."
        )
    return module


def run_folder(trainer: Trainer) -> Path:
    """Return the folder of the trainer's :class:`Record` or :class:`WandB`.

    Without either, the trainer's ``default_root_dir``.
    """
    for kind in (Record, WandB):
        for logger in trainer.loggers:
            if isinstance(logger, kind):
                return logger.folder
    return Path(trainer.default_root_dir)
