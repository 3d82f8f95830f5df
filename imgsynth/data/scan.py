"""What lies in a folder: the image files, and when they last changed."""

import errno
import heapq
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from imgsynth.data.decode import SUFFIXES

Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Listing:
    """The image files below a folder, in the order of their names.

    Attributes:
        root: The folder.
        names: Paths relative to it, with ``/``, sorted by code points: the same on every machine.
            Bytes that are not UTF-8 are surrogates, as Python has them.
        sizes: Bytes of each; -1 where the file cannot be asked.
        mtimes: When each last changed, in nanoseconds.
        others: How many files there are that their names do not call images, by suffix.
        empty: Folders that hold no image, not even further down, relative to the root.
    """

    root: Path
    names: Sequence[str]
    sizes: Numbers
    mtimes: Numbers
    others: Mapping[str, int] = field(default_factory=dict)
    empty: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def path(self, place: int) -> str:
        """Return the path of one file."""
        return f"{self.root}/{self.names[place]}"  # a Path would take ten times as long

    def at(self, places: Numbers) -> "Listing":
        """Return some of the files, in the order of their names."""
        places = np.sort(places)
        names = [self.names[i] for i in places.tolist()]
        return Listing(self.root, names, self.sizes[places], self.mtimes[places])


def scan(root: str | Path) -> Listing:
    """List the image files below a folder; hidden ones and those of ``__MACOSX`` do not count.

    Links are followed. A folder that several links or names lead to counts once: by the path
    without links if there is one below the root, else by the first in the order of names.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        OSError: If a folder may not be read.
        ValueError: If it holds no images.

    Example:
        >>> import skimage
        >>> listing = scan(Path(skimage.__file__).parent / "data")
        >>> "astronaut.png" in listing.names
        True
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise FileNotFoundError(
            f"The folder {root} {what} (looked for {root.resolve()}); name a folder of images."
        )
    found = _Found(root)
    found.fill()
    if not found.names:
        raise ValueError(
            f"The folder {root} holds no images ({sum(found.others.values()):,} other files); "
            f"images end in {' '.join(sorted(SUFFIXES))}."
        )
    order = sorted(range(len(found.names)), key=found.names.__getitem__)
    stats = np.array(found.stats, np.int64).reshape(-1, 2)[order]
    filled = _with_parents(found.filled)
    return Listing(
        root,
        [found.names[i] for i in order],
        stats[:, 0].copy(),
        stats[:, 1].copy(),
        dict(found.others.most_common()),
        tuple(sorted(folder for folder in found.hollow if folder not in filled)),
    )


@dataclass
class _Found:
    """What is found on the way, in the order of the disk.

    Nothing else is kept of a file: a million of what ``os.scandir`` yields are a gigabyte.
    """

    root: Path
    names: list[str] = field(default_factory=list)
    stats: "array[int]" = field(default_factory=lambda: array("q"))  # size, time, size, time...
    others: Counter[str] = field(default_factory=Counter)
    filled: list[str] = field(default_factory=list)
    hollow: list[str] = field(default_factory=list)

    def fill(self) -> None:
        """Go through all folders: links after the others, and those in the order of names."""
        ahead = [(False, "")]
        entered: set[tuple[int, int]] = set()
        while ahead:
            _, folder = heapq.heappop(ahead)
            path = f"{self.root}/{folder}"[:-1]
            try:
                state = Path(path).stat()
                if (state.st_dev, state.st_ino) in entered:
                    continue
                entered.add((state.st_dev, state.st_ino))
                for below in self._enter(path, folder):
                    heapq.heappush(ahead, below)
            except OSError as error:
                raise OSError(
                    f"The folder {path} cannot be read ({error.strerror or error}); allow it, or "
                    "move the folder elsewhere."
                ) from error

    def _enter(self, path: str, folder: str) -> list[tuple[bool, str]]:
        """Take in the files of one folder; return the folders in it, and which are links."""
        below: list[tuple[bool, str]] = []
        num_before = len(self.names)
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if _is_folder(entry):
                    below.append((entry.is_symlink(), f"{folder}{entry.name}/"))
                elif (suffix := os.path.splitext(entry.name)[1].lower()) in SUFFIXES:  # noqa: PTH122
                    self.names.append(folder + entry.name)
                    self.stats.extend(_state(entry))
                else:
                    self.others[suffix] += 1
        if folder:
            (self.hollow if len(self.names) == num_before else self.filled).append(folder[:-1])
        return below


def _with_parents(folders: Iterable[str]) -> set[str]:
    paths = [PurePosixPath(folder) for folder in folders]
    return {str(folder) for path in paths for folder in (path, *path.parents)}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:  # a link that leads nowhere
            return False
        raise


def _state(file: os.DirEntry[str]) -> tuple[int, int]:
    try:
        state = file.stat()
    except OSError:  # a link to nothing: told when it is decoded
        return -1, 0
    return state.st_size, state.st_mtime_ns


def spread(num: int, most: int) -> Sequence[int]:
    """Return at most so many numbers below ``num``, evenly spread.

    Example:
        >>> list(spread(10, 4))
        [1, 3, 6, 8]
    """
    return range(num) if num <= most else [(2 * i + 1) * num // (2 * most) for i in range(most)]
