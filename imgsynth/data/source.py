"""Where a loader fetches its images from: memory, a device, or a file that processes share."""

import copy
import warnings
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
import xxhash
from torch import Tensor

from imgsynth.types import Batch

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
"""A hash of each image: uint64, ``(N,)``."""


class Source(Protocol):
    """Images that can be fetched by index, many at a time."""

    @property
    def device(self) -> torch.device:
        """Where the indices are expected and the batches are made."""

    def __len__(self) -> int:
        """Return the number of images."""

    def fetch(self, indices: Tensor) -> Batch:
        """Make one batch of the images at ``indices`` (int64, ``(B,)``), in that order."""


class TensorSource:
    """Images of one tensor in their source's dtype: all of it, or some rows.

    Args:
        images: ``(M, C, H, W)``, uint8 or uint16.
        labels: ``(N,)`` int64 on the same device, or None.
        rows: Places in ``images`` of the N images meant, int64, in order. None means all.
        hashes: What :func:`hash_images` gives for the N images, if that is known.

    Example:
        >>> source = TensorSource(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1))
        >>> source.at(torch.tensor([3, 1])).fetch(torch.tensor([0]))["image"].item()
        3
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        rows: Tensor | None = None,
        hashes: Hashes | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.rows = rows
        self._hashes = hashes

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    @property
    def nbytes(self) -> int:
        """Bytes that the images take as one tensor."""
        return len(self) * self.images[:1].nbytes

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images) if self.rows is None else len(self.rows)

    def fetch(self, indices: Tensor) -> Batch:
        """Copy the images at ``indices`` (and their labels) into a new batch."""
        rows = indices if self.rows is None else self.rows.index_select(0, indices)
        batch = {"image": select(self.images, rows)}
        if self.labels is not None:
            batch["label"] = self.labels.index_select(0, indices)
        return batch

    def at(self, indices: Tensor) -> Self:
        """Return the images at ``indices`` only, in that order; none is copied."""
        other = copy.copy(self)
        other.rows = indices if self.rows is None else self.rows.index_select(0, indices)
        other.labels = None if self.labels is None else self.labels.index_select(0, indices)
        other._hashes = None if self._hashes is None else self._hashes[indices.numpy()]
        return other

    def to(self, device: torch.device) -> "TensorSource":
        """Return the same images in the memory of a device."""
        if device == self.device:
            return self
        shape = (len(self), *self.images.shape[1:])
        images = torch.empty(shape, dtype=self.images.dtype, device=device)
        # Some at a time: a set that is in a file need not fit into the memory here.
        at_once = max(1, 2**26 // self.images[:1].nbytes)
        for places in torch.split(torch.arange(len(self)), at_once):
            images[places[0] : places[-1] + 1] = self.fetch(places)["image"].to(device)
        labels = None if self.labels is None else self.labels.to(device)
        return TensorSource(images, labels, hashes=self._hashes)

    def hashes(self) -> Hashes:
        """Return the hash of each image, in order; computed when it is asked for first."""
        if self._hashes is None:
            # Some at a time: what is in a file need not fit into memory.
            parts = torch.split(torch.arange(len(self)), 256)
            self._hashes = np.concatenate([hash_images(self.fetch(p)["image"]) for p in parts])
        return self._hashes


class MappedSource(TensorSource):
    """Images in a file of raw pixels, mapped into memory: processes share what is read of it.

    Args:
        path: The file: uint8 or uint16 pixels, little-endian, nothing else.
        shape: ``(M, C, H, W)``.
        dtype: ``torch.uint8`` or ``torch.uint16``.
        labels: As in :class:`TensorSource`.
        rows: As in :class:`TensorSource`.
        hashes: As in :class:`TensorSource`.
        hold: Kept as long as the images are, such as a lock on the file.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        labels: Tensor | None = None,
        rows: Tensor | None = None,
        hashes: Hashes | None = None,
        hold: object = None,
    ) -> None:
        self.hold = hold
        self._file = (path, shape, dtype)
        super().__init__(_mapped(path, shape, dtype), labels, rows, hashes)

    def __copy__(self) -> Self:
        """Share the open file, which may have lost its name meanwhile."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Leave the images out: another process opens the file instead of getting a copy."""
        return {k: v for k, v in self.__dict__.items() if k != "images"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the file."""
        self.__dict__.update(state, images=_mapped(*state["_file"]))


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    number = np.dtype("u1" if dtype == torch.uint8 else "<u2")
    pixels = np.memmap(path, number, mode="r", shape=shape)
    with warnings.catch_warnings():
        # Nothing writes to it: batches are copies. A private writable mapping would be counted
        # as memory in use.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(pixels)


def select(images: Tensor, indices: Tensor) -> Tensor:
    """Return the images at ``indices``; ``index_select`` is 8 times as fast as ``images[indices]``.

    16-bit images are read as int16, as not every device indexes uint16.
    """
    if images.dtype == torch.uint16:
        return images.view(torch.int16).index_select(0, indices).view(torch.uint16)
    return images.index_select(0, indices)


def hash_images(images: Tensor) -> Hashes:
    """Return a hash of each image's content.

    XXH3 (64 bits) over dtype, shape and little-endian pixels: equal for equal images, wherever and
    in whatever order they are stored. Among a million different images the chance that any two
    have one hash is below 1e-7; it is no protection against somebody who wants two to have one.

    Args:
        images: ``(N, C, H, W)``, uint8 or uint16, on the CPU.

    Example:
        >>> hash_images(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
        array([2238436256688116017], dtype=uint64)
    """
    start = xxhash.xxh3_64(f"{images.dtype} {tuple(images.shape[1:])}".encode())
    pixels = images.contiguous().numpy()
    pixels = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
    hashes = np.empty(len(pixels), np.uint64)
    for i, image in enumerate(pixels):
        digest = start.copy()
        digest.update(image.data)
        hashes[i] = digest.intdigest()
    return hashes
