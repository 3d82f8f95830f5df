"""Where a run is written down: the local, append-only record."""

from imgsynth.loggers.record import Record, read_rows, sheet_path

__all__ = ["Record", "read_rows", "sheet_path"]
