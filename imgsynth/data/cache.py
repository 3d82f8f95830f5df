"""The decoded images of a folder, in one file that processes map into memory.

A cache is a folder called by its key: a hash of the names, sizes and times of the source files and
of the rule. In it ``pixels.raw`` holds the images one after the other, ``hashes.u64`` a hash of
each, and ``about.json`` the rest. It is built in ``KEY.part`` and renamed when it is complete (see
:mod:`imgsynth.data.build`), so that nothing half-written is ever read.
"""

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from imgsynth.data.rule import Rule
from imgsynth.data.scan import Listing
from imgsynth.data.source import MappedSource

VERSION = 1
FILES = {
    *("about.json", "plan.json", "files.npz", "pixels.raw", "hashes.u64", "done.u8"),
}
"""What a cache consists of."""
_NAME = re.compile(r"[0-9a-f]{32}(\.part|\.gone)?")


class _Hold:
    """Keeps a cache from being removed as long as this object lives, in other processes too."""

    def __init__(self, about: Path) -> None:
        self.about = about
        self.file = os.open(about, os.O_RDONLY)
        _lock(self.file, exclusively=False)
        if not os.path.samestat(os.fstat(self.file), about.stat()):
            raise FileNotFoundError(errno.ENOENT, "It was removed meanwhile", str(about))

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it could not be opened
            os.close(self.file)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hold, (self.about,)


def _lock(file: int, *, exclusively: bool) -> bool:
    """Lock, exclusively only if nobody has it; say whether it worked."""
    if importlib.util.find_spec("fcntl") is None:  # no POSIX system: nothing protects from eviction
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusively else fcntl.LOCK_SH)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Cache:
    """Decoded images.

    Attributes:
        images: A row for each file, also for those that could not be used.
        rule: What became of them, with nothing left open.
        root: The folder they were in.
        unusable: Why a file has no image, by its place.
    """

    images: MappedSource
    rule: Rule
    root: str
    unusable: dict[int, str]

    def source(self, rows: Tensor, labels: Tensor | None) -> MappedSource:
        """Return some of the images.

        Args:
            rows: Their places, int64 ``(N,)``.
            labels: Their labels, int64 ``(N,)``, or None.
        """
        source = self.images.at(rows)
        source.labels = labels
        return source


def key_of(listing: Listing, rule: Rule, salt: str = "") -> str:
    """Return the name of the cache that these files and this rule need, 32 hexadecimal digits."""
    names = "\0".join(listing.names).encode(errors="surrogateescape")
    head = f"{VERSION} {sorted(asdict(rule).items())} {salt}"
    digest = hashlib.blake2b(head.encode(errors="surrogateescape"), digest_size=16)
    for part in (names, listing.sizes.astype("<i8").data, listing.mtimes.astype("<i8").data):
        digest.update(hashlib.blake2b(part).digest())
    return digest.hexdigest()


def opened(folder: Path) -> Cache | None:
    """Open a complete cache; None if it is not there."""
    about = read_about(folder)
    if about is None:
        return None
    try:
        hold = _Hold(folder / "about.json")
        hashes = np.fromfile(folder / "hashes.u64", "<u8").astype(np.uint64)
        images = MappedSource(
            folder / "pixels.raw",
            tuple(about["shape"]),
            getattr(torch, about["dtype"]),
            hashes=hashes,
            hold=hold,
        )
    except FileNotFoundError:  # removed meanwhile
        return None
    with contextlib.suppress(OSError):  # others may own it
        os.utime(folder / "about.json")  # when it was used last
    rule = about["rule"]
    unusable = {int(place): reason for place, reason in about["unusable"].items()}
    resolved = Rule(**{**rule, "size": tuple(rule["size"])})
    return Cache(images, resolved, about["root"], unusable)


def read_about(folder: Path) -> dict[str, Any] | None:
    """Return what a cache says of itself; None if it is not complete."""
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_bytes())
        sizes = {"pixels.raw": about["bytes"], "hashes.u64": 8 * about["shape"][0]}
        complete = all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    return about if complete and about["version"] == VERSION else None


@contextlib.contextmanager
def one_at_a_time(folder: Path, key: str, root: Path) -> Iterator[None]:
    """Let one process build a cache; the others wait."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key}.lock")
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            tqdm.write(f"Waiting for another process that decodes {root}.", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise OSError(
            f"The cache {folder} cannot be written ({error.strerror}); name another folder with "
            "cache= or $IMGSYNTH_CACHE."
        ) from error
    try:
        yield
    finally:
        lock.release()


def make_room(folder: Path, key: str, needed: int, max_bytes: float) -> None:
    """Remove the caches used longest ago until a new one fits into what all may take.

    Nothing but caches is touched, and none that a living process has opened or is building.

    Args:
        folder: Where caches are.
        key: The new one.
        needed: Its bytes.
        max_bytes: What all may take.

    Raises:
        ValueError: If it does not fit.
    """
    others = sorted(_others(folder, key))
    total = sum(size for _, size, _ in others) + needed
    for _, size, path in others:
        if needed > max_bytes or total <= max_bytes:
            break
        if _remove(path):
            total -= size
    if total > max_bytes:
        used = "" if needed > max_bytes else f", with {gigabytes(total - needed)} that are in use"
        raise ValueError(
            f"The decoded images take {gigabytes(needed)}{used}, more than the "
            f"{gigabytes(max_bytes)} that caches may take; raise cache_gb, or choose a smaller "
            "size."
        )


def _others(folder: Path, key: str) -> Iterator[tuple[float, int, Path]]:
    """Yield when each other cache was used last, its bytes, and where it is."""
    for path in folder.iterdir():
        if not _NAME.fullmatch(path.name) or path.stem == key:
            continue
        with contextlib.suppress(OSError):  # another process may remove or rename it
            if path.is_dir() and {file.name for file in path.iterdir()} <= FILES:
                about = path / "about.json"
                used = (about if about.exists() else path).stat().st_mtime
                yield used, sum(f.stat().st_size for f in path.iterdir()), path


def _remove(path: Path) -> bool:
    """Remove a cache unless it is in use; say whether it is gone."""
    try:
        with FileLock(path.with_suffix(".lock"), timeout=0), contextlib.ExitStack() as stack:
            if (path / "about.json").exists():
                file = stack.enter_context((path / "about.json").open("r+b"))  # as NFS wants it
                if not _lock(file.fileno(), exclusively=True):
                    return False
            discard(path)
    except FileNotFoundError:  # another process was faster
        return True
    except (OSError, Timeout):
        return False
    return True


def discard(path: Path) -> None:
    """Remove a cache at once: who opened it keeps it, and nobody sees a part of it."""
    gone = path.with_suffix(".gone")
    if path != gone:
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def gigabytes(num_bytes: float) -> str:
    """Return a number of bytes for people.

    Example:
        >>> gigabytes(12.3e9), gigabytes(45e6)
        ('12.30 GB', '45.00 MB')
    """
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.2f} MB"
