"""The record of a run: rows, pictures and provenance in a plain folder, readable at any time."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from imgsynth.describe import describe
from imgsynth.images import save_png
from imgsynth.methods.base import Method

ROWS = "record.jsonl"
RUN = "run.json"
PROTOCOLS = "protocols.json"
_FINGERPRINTS = "fingerprints"
_LARGEST_DIFF = 1_000_000
_PACKAGES = ("imgsynth", "torch", "torchvision", "lightning", "kornia", "numpy")


class Record(Logger):
    """Logger that appends to a folder and never rewrites what it said.

    ``record.jsonl``: one JSON object a line: ``images`` (seen on all devices), ``updates``,
    ``seconds`` (of training, over all resumptions) and the terms. ``run.json``: command line, git
    commit, versions, how method and data were built, a hash of the data, and each start with its
    end. ``fingerprints.npz``: a hash of every image of the data, by split; a further one,
    ``fingerprints-2.npz``, if the second start had other images. ``protocols.json``: what the
    scores in the rows were measured by; each row with scores names them. A row is in the file
    before the next update begins, so that a killed run keeps all its rows.

    Only the first process writes. A run that resumes notes the images it resumed from, and
    :func:`read_rows` leaves out what an earlier attempt wrote beyond.

    Args:
        folder: The run's folder; made when training starts.

    Example:
        >>> record = Record("runs/digits")
        >>> # Trainer(logger=record).fit(method, data)
        >>> # read_rows("runs/digits")
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self._method: Method | None = None
        self._training = False
        self._seconds_before = 0.0
        self._began = time.monotonic()
        self._protocols: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def version(self) -> str:
        """Empty: one folder holds one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of runs, so that ``save_dir/name/version`` is the run's folder."""
        return str(self.folder.parent)

    @property
    def seconds(self) -> float:
        """Training seconds since the run began, without those between a stop and a resumption."""
        return self._seconds_before + time.monotonic() - self._began

    # -- the start ----------------------------------------------------------------------------

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Begin, or note that the run resumes: the call Lightning makes before training."""
        if isinstance(model, Method) and model.trainer.state.fn == TrainerFn.FITTING:
            self._method, self._training = model, True
            self._start(model)

    def _start(self, method: Method) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _end_torn_line(self.folder / ROWS)
        before = read_rows(self.folder) if (self.folder / ROWS).exists() else []
        ends = [start["end"] for start in self._facts()["starts"] if "end" in start]
        told = [row for row in [*before, *ends] if row["images"] <= method.images_seen]
        self._seconds_before = max((row.get("seconds", 0.0) for row in told), default=0.0)
        self._began = time.monotonic()
        now = _now()
        place = {"images": method.images_seen, "updates": method.updates}
        if before or method.images_seen:
            self._append(
                {"event": "resume", **place, "seconds": round(self.seconds, 3), "time": now}
            )
        self._describe_run({"time": now, **place}, method)

    def _describe_run(self, start: dict[str, Any], method: Method) -> None:
        before = self._facts()
        starts = before["starts"]
        name = "run.diff" if not starts else f"run-{len(starts) + 1}.diff"
        start |= {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "git": git_state(self.folder / name),
            "versions": _versions(),
        }
        datamodule = getattr(method.trainer, "datamodule", None)
        data = _data(datamodule)
        if data and data["splits"] != (before.get("data") or {"splits": {}})["splits"]:
            number = f"-{len(starts) + 1}" if starts else ""
            _save_fingerprints(self.folder / f"{_FINGERPRINTS}{number}.npz", datamodule)
        facts = {
            "method": method.describe(),
            "data": data,
            "seed": method.seed,
            "total_images": method.total_images,
            "device": _device(method.trainer.strategy.root_device),
            "devices": method.trainer.world_size,
            "precision": str(method.trainer.precision),
            "threads": torch.get_num_threads(),
            "command": start["command"],
            "git": start["git"],
            "versions": start["versions"],
            "starts": [*starts, start],
        }
        self._write(facts)

    def _facts(self) -> dict[str, Any]:
        path = self.folder / RUN
        facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"starts": []}
        return facts

    def _write(self, facts: dict[str, Any]) -> None:
        temporary = self.folder / f".{RUN}.part"
        temporary.write_text(json.dumps(facts, indent=2, default=str) + "\n")
        temporary.replace(self.folder / RUN)

    # -- rows and pictures --------------------------------------------------------------------

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row.

        Args:
            metrics: Terms by key. ``progress/images`` and ``progress/updates`` become ``images``
                and ``updates``; without them the method's own counts are taken. A value that is
                not finite becomes null.
            step: Taken for the updates if nothing else tells them.

        Raises:
            OSError: If the row cannot be written.
        """
        terms = {key: float(value) for key, value in metrics.items()}
        method = self._method
        images = terms.pop("progress/images", method.images_seen if method is not None else 0)
        updates = terms.pop("progress/updates", method.updates if method is not None else step or 0)
        row: dict[str, Any] = {"images": int(images), "updates": int(updates)}
        row["seconds"] = round(self.seconds, 3)
        row |= {k: v if math.isfinite(v) else None for k, v in terms.items()}
        measured_by = {key: self._protocols[key] for key in terms if key in self._protocols}
        self._append(row | ({"protocols": measured_by} if measured_by else {}))

    @rank_zero_only
    def log_protocols(self, protocols: Mapping[str, Mapping[str, Any]]) -> None:
        """Note what scores are measured by: rows with them carry its hash from now on.

        Args:
            protocols: By the scores' keys; plain data with its ``hash``.
        """
        self._protocols |= {key: protocol["hash"] for key, protocol in protocols.items()}
        path = self.folder / PROTOCOLS
        known = json.loads(path.read_text()) if path.exists() else {}
        new = {protocol["hash"]: dict(protocol) for protocol in protocols.values()}
        if not new.keys() <= known.keys():
            temporary = self.folder / f".{PROTOCOLS}.part"
            temporary.write_text(json.dumps(known | new, indent=2) + "\n")
            temporary.replace(path)

    def _append(self, row: dict[str, Any]) -> None:
        path = self.folder / ROWS
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            written = os.write(file, line)  # in one piece, so that a kill hardly ever tears it
        except OSError as error:
            raise _unwritten(path, error.strerror or str(error)) from error
        finally:
            os.close(file)
        if written < len(line):
            raise _unwritten(path, "only a part of the row was written; the disk may be full")

    @rank_zero_only
    def log_images(
        self, name: str, picture: Tensor, images: int, text: Mapping[str, str] | None = None
    ) -> None:
        """Write one sheet of pictures as a PNG; see :func:`sheet_path` for where.

        Args:
            name: What it shows, a key of :meth:`Method.pictures`.
            picture: ``(C, H, W)`` in [-1, 1].
            images: Images seen so far.
            text: Where it comes from, for the file's text chunks.
        """
        save_png(sheet_path(self.folder, name, images), picture, text)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Note in ``run.json`` where and when training ended; a killed run has no such note.

        Args:
            status: Lightning's: ``success`` or another.
        """
        method, training = self._method, self._training
        self._training = False
        if method is None or not training:
            return
        with contextlib.suppress(OSError):  # what ended the run, such as a full disk, is said
            facts = self._facts()
            end = {"images": method.images_seen, "updates": method.updates, "status": status}
            facts["starts"][-1]["end"] = end | {"seconds": round(self.seconds, 3), "time": _now()}
            self._write(facts)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Do nothing: ``run.json`` holds how method and data were built."""


def sheet_path(folder: str | Path, name: str, images: int) -> Path:
    """Return the file of a sheet: ``samples/000000012800.png``.

    Sheets of another name than ``samples`` carry it: ``samples/reconstructions-000000012800.png``.

    Example:
        >>> sheet_path("runs/digits", "samples", 12800).as_posix()
        'runs/digits/samples/000000012800.png'
    """
    prefix = "" if name == "samples" else f"{name}-"
    return Path(folder) / "samples" / f"{prefix}{images:012d}.png"


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a run, as if it had never been interrupted.

    Rows beyond the image count of a later resumption are left out, as are torn lines. Of two rows
    with the same images and the same terms the later counts. Safe while the run goes on.

    Args:
        path: The run's folder, or its ``record.jsonl``.

    Returns:
        The rows in order, each with ``images``, ``updates``, ``seconds`` and its terms.

    Raises:
        FileNotFoundError: If there is no record.

    Example:
        >>> # rows = read_rows("runs/digits")
        >>> # [row["train/generator/adversarial"] for row in rows]
    """
    path = Path(path)
    file = path / ROWS if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"There is no {ROWS} in {path}; give the folder of a run.")
    rows: dict[tuple[int, frozenset[str]], dict[str, Any]] = {}
    for line in file.read_bytes().splitlines():
        row = _parse(line)
        if row is None:
            continue
        if row.get("event") == "resume":
            rows = {key: kept for key, kept in rows.items() if kept["images"] <= row["images"]}
        elif "event" not in row:
            rows[row["images"], frozenset(row)] = row
    return list(rows.values())


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a line's row; None if the line is torn or no row."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("images"), int) else None


def _end_torn_line(path: Path) -> None:
    """End the line that a crash cut short, so that the next row has a line of its own."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _unwritten(path: Path, reason: str) -> OSError:
    return OSError(f"Could not append to {path}: {reason}.")


def _data(datamodule: object) -> dict[str, Any] | None:
    if datamodule is None:
        return None
    splits = {}
    if hasattr(datamodule, "fingerprint_of") and hasattr(datamodule, "splits"):
        for split in datamodule.splits:
            splits[split] = {
                "images": datamodule.num_images(split),  # type: ignore[attr-defined]
                "fingerprint": datamodule.fingerprint_of(split),
            }
    return {**describe(datamodule), "splits": splits}


def _save_fingerprints(path: Path, datamodule: Any) -> None:  # noqa: ANN401
    hashes = {split: datamodule.fingerprint(split) for split in datamodule.splits}
    with path.open("wb") as file:
        np.savez(file, **hashes)


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions | {"cuda": torch.version.cuda}


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


def git_state(diff: Path) -> dict[str, Any] | None:
    """Describe the working directory's repository; its changes go to the file ``diff``."""
    commit = _run_git("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _run_git("diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD") or b""
    if changes:
        diff.write_bytes(changes[:_LARGEST_DIFF])
    return {
        "commit": commit.decode(errors="replace").strip(),
        "diff": diff.name if changes else None,
        "diff_complete": len(changes) <= _LARGEST_DIFF,
    }


def _run_git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            check=True,
            timeout=10,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
