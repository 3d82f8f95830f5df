"""What lies in a folder: the image files, and when they last changed."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
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
        sizes: Bytes of each; -1 where the file cannot be asked.
        mtimes: When each last changed, in nanoseconds.
        num_others: Files that their names do not call images.
        empty: Folders that hold no image, not even further down, relative to the root.
    """

    root: Path
    names: Sequence[str]
    sizes: Numbers
    mtimes: Numbers
    num_others: int = 0
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

    Links are followed, each folder once.

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
    found: list[tuple[str, int, int]] = []
    empty: list[str] = []
    num_others = 0
    for folder, files in _walk(str(root), "", {_identity(root)}):
        images = [f for f in files if os.path.splitext(f.name)[1].lower() in SUFFIXES]  # noqa: PTH122
        num_others += len(files) - len(images)
        found += [(folder + f.name, *_state(f)) for f in images]
        if not images and folder:
            empty.append(folder)
    if not found:
        raise ValueError(
            f"The folder {root} holds no images ({num_others:,} other files); images end in "
            f"{' '.join(sorted(SUFFIXES))}."
        )
    found.sort()
    filled = {"/".join(parts[:i]) for parts in _folders(found) for i in range(1, len(parts) + 1)}
    return Listing(
        root,
        [name for name, _, _ in found],
        np.array([size for _, size, _ in found], np.int64),
        np.array([mtime for _, _, mtime in found], np.int64),
        num_others,
        tuple(sorted(folder[:-1] for folder in empty if folder[:-1] not in filled)),
    )


def _folders(found: list[tuple[str, int, int]]) -> set[tuple[str, ...]]:
    return {tuple(name.split("/")[:-1]) for name, _, _ in found}


def _walk(
    path: str, folder: str, above: set[tuple[int, int]]
) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yield each folder, ``a/b/``, with its files; none of ``above`` is entered again."""
    files: list[os.DirEntry[str]] = []
    folders: list[os.DirEntry[str]] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name != "__MACOSX":
                (folders if entry.is_dir() else files).append(entry)
    yield folder, files
    for entry in folders:
        identity = _identity(Path(entry.path))
        if identity not in above:
            above.add(identity)
            yield from _walk(entry.path, f"{folder}{entry.name}/", above)


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def _state(file: os.DirEntry[str]) -> tuple[int, int]:
    try:
        state = file.stat()
    except OSError:  # a link to nothing: told when it is decoded
        return -1, 0
    return state.st_size, state.st_mtime_ns
