"""Run folders: finding one that is meant, and making a new one."""

import os
import re
from pathlib import Path

from imgsynth.cli.errors import UsageError, did_you_mean, nearest

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
_PROVENANCE = re.compile(r"run\.json|run(-\d+)?\.diff|fingerprints(-\d+)?\.npz")
_HANDED_ON = "IMGSYNTH_RUN"


def find_run(path: str) -> Path:
    """Return an existing run folder or checkpoint.

    Raises:
        UsageError: If there is none; it proposes runs of a similar name.
    """
    found = Path(path)
    if found.exists():
        return found
    parent = found.parent if found.parent.is_dir() else Path()
    names = [p.name for p in parent.iterdir() if p.is_dir()]
    meant = [str(parent / name) for name in nearest(found.name, names, 2)]
    if not meant and Path("runs", found.name).is_dir():
        meant = [f"runs/{found.name}"]
    raise UsageError(
        f"There is no run or checkpoint at {path!r}.",
        "Expected the folder of a run, such as runs/demo, or one of its checkpoints.",
        did_you_mean(meant),
    )


def folder_of(path: Path) -> Path:
    """Return the run folder that a run folder or checkpoint belongs to."""
    if path.is_dir():
        return path.parent if path.name == CHECKPOINTS else path
    return path.parent.parent if path.parent.name == CHECKPOINTS else path.parent


def config_of(path: Path) -> Path:
    """Return the configuration that a run was started with.

    Raises:
        UsageError: If there is none.
    """
    config = folder_of(path) / CONFIG
    if not config.is_file():
        raise UsageError(
            f"{str(folder_of(path))!r} is no run of `imgsynth fit`: it has no {CONFIG}.",
            "Expected the folder of a run, such as runs/demo, or one of its checkpoints.",
        )
    return config


def new_folder(out: str, name: str | None, proposal: str) -> Path:
    """Return the folder of a new run, not made yet.

    Processes that train together agree: those the first one starts inherit its choice.

    Args:
        out: The folder of runs.
        name: The run's name, if the user gave one.
        proposal: Its name otherwise; a number is added if it is taken.

    Raises:
        UsageError: If the name is taken or no name.
    """
    handed_on = os.environ.get(_HANDED_ON)
    if handed_on is not None and is_helper():
        return Path(handed_on)
    if name is not None and (not name.strip() or name in {".", ".."} or set(name) & set("/\\\0")):
        raise UsageError(
            f"--name {name!r} is no name of a folder.",
            "Expected a single name; --out says in which folder the run's folder is made.",
        )
    processes = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or "1"
    if name is None and int(processes) > 1:
        raise UsageError(
            "Processes started from outside cannot agree on a name for the run.",
            "Expected --name NAME.",
        )
    folder = Path(out) / (name if name is not None else proposal)
    if name is not None:
        if is_taken(folder) and not is_helper():
            raise UsageError(
                f"There is a run in {str(folder)!r} already.",
                f"Expected another --name, or `imgsynth resume {folder}` to continue that run.",
            )
    else:
        number = 2
        while is_taken(folder):
            folder = Path(out) / f"{proposal}-{number}"
            number += 1
    os.environ[_HANDED_ON] = str(folder)
    return folder


def is_helper() -> bool:
    """Say whether this is a further process of a run that another one leads."""
    return any(os.environ.get(rank, "0") != "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def was_started_by_lightning() -> bool:
    """Say whether this is a process that the first one of a run started for another device."""
    launchers = {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"}
    return os.environ.get("LOCAL_RANK", "0") != "0" and not launchers & set(os.environ)


def is_taken(folder: Path) -> bool:
    """Say whether a folder holds more than what a run leaves that failed before it began."""
    if not folder.exists():
        return False
    return not folder.is_dir() or any(
        path.name not in {CONFIG, "wandb"} and not _PROVENANCE.fullmatch(path.name)
        for path in folder.iterdir()
    )


def write_config(folder: Path, text: str) -> None:
    """Write a run's configuration, whole or not at all; one process of a run does."""
    if is_helper():
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{CONFIG}.part"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / CONFIG)
