"""Where a run is written down: the local, append-only record, and Weights & Biases beside it."""

from imgsynth.loggers.record import Record, read_rows, sheet_path
from imgsynth.loggers.wandb import WandB

__all__ = ["Record", "WandB", "read_rows", "sheet_path"]
