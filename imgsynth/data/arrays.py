"""Your own images from .npy or .npz files, NumPy arrays or tensors."""

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from imgsynth.data.base import ImageDataModule, Split
from imgsynth.data.levels import Array, Range, guess_range, quantise

ArrayLike: TypeAlias = str | Path | np.ndarray[Any, Any] | Tensor
"""A path to a .npy or .npz file, or the array itself."""


class Arrays(ImageDataModule):
    """Images (and labels) held in arrays.

    Shapes: ``(N, H, W)`` is gray. Of four axes, the last one holds the channels if it has at most
    4 entries and the second has more, ``(N, H, W, C)``; the second one holds them in the opposite
    case, ``(N, C, H, W)``; where both or neither have at most 4, ``channels_last`` must say.

    Args:
        images: The training images: numbers of any type, as an array or tensor, the path of a
            .npy file, or of a .npz file that has them under ``images_key``.
        labels: Their labels, whole numbers from 0: an array, tensor or .npy file. A .npz file of
            images may hold them itself, under ``labels_key``.
        test_images: Images of the split ``test``, given like ``images``.
        test_labels: Their labels, given like ``labels``.
        test_fraction: Take this part (0 to 1) of the images as the split ``test`` instead: the
            last of ``np.random.default_rng(0).permutation(N)``, whatever the run's seed.
        class_names: A name for each label.
        channels_last: Where the channels are, if the shape does not tell.
        value_range: Which values are black and white; what lies beyond becomes black or white
            too. None: 0 and 255 for whole numbers (65,535 if some are larger), 0 and 1 for others
            (-1 and 1 if some are negative), False and True; and an error if the training images
            fit none of these.
        bits: Images are kept with 8 or 16 bits a channel. None: 16 if they are uint16 or larger
            whole numbers than 255, else 8.
        images_key: The images' name in .npz files.
        labels_key: The labels' name in .npz files. None means ``labels``, if there is such a name.
        kwargs: What every :class:`~imgsynth.data.base.ImageDataModule` takes.

    Raises:
        ValueError: If the test split is given twice, or in part.

    Example:
        >>> pixels = np.zeros((20, 16, 16, 3), dtype=np.uint8)
        >>> data = Arrays(pixels, np.arange(20) % 2, test_fraction=0.25)
        >>> data.image_shape, data.num_classes, data.num_images("test")
        ((3, 16, 16), 2, 5)
    """

    def __init__(
        self,
        images: ArrayLike,
        labels: ArrayLike | None = None,
        test_images: ArrayLike | None = None,
        test_labels: ArrayLike | None = None,
        test_fraction: float | None = None,
        class_names: Sequence[str] | None = None,
        channels_last: bool | None = None,
        value_range: Range | None = None,
        bits: Literal[8, 16] | None = None,
        images_key: str = "images",
        labels_key: str | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        if test_images is not None and test_fraction is not None:
            raise ValueError("Pass test_images or test_fraction, not both.")
        if test_labels is not None and test_images is None:
            raise ValueError("test_labels were given without test_images; pass both.")
        if test_fraction is not None and not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}.")
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ValueError(f"value_range must be (black, white), rising, got {value_range}.")
        self.value_range = None if value_range is None else (value_range[0], value_range[1])
        self.bits = bits
        self.sources = {"train": (images, labels)}
        if test_images is not None:
            self.sources["test"] = (test_images, test_labels)
        self._range: Range | None = None
        self.test_fraction = test_fraction
        self.channels_last = channels_last
        self.images_key = images_key
        self.labels_key = labels_key
        self.names = tuple(class_names or ())
        has_test = test_images is not None or test_fraction is not None
        self.splits = ("train", "test") if has_test else ("train",)

    def load_split(self, split: str) -> Split:
        """Read one split, and arrange it as ``(N, C, H, W)``.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file or an array is not what it should be.
        """
        if self.test_fraction is None:
            return self._read(*self.sources[split])
        images, labels = self._read(*self.sources["train"])
        order = np.random.default_rng(0).permutation(len(images))
        num_test = round(len(images) * self.test_fraction)
        if not 0 < num_test < len(images):
            raise ValueError(
                f"test_fraction={self.test_fraction} of {len(images):,} images leaves "
                f"{len(images) - num_test:,} to train on and {num_test:,} to test on; both need "
                "at least one."
            )
        start = len(images) - num_test
        chosen = torch.from_numpy(order[:start] if split == "train" else order[start:])
        return images[chosen], None if labels is None else _labels_for(images, labels)[chosen]

    def _read(self, images: ArrayLike, labels: ArrayLike | None) -> Split:
        if isinstance(images, str | Path) and Path(images).suffix == ".npz":
            if labels is None:
                labels = _member(images, self.labels_key or "labels", self.labels_key is not None)
            pixels = _member(images, self.images_key, required=True)
        else:
            pixels = _load(images)
        assert pixels is not None
        whole = self._whole(_array(pixels, "images"))
        arranged = _arranged(torch.from_numpy(whole), self.channels_last)
        return arranged, None if labels is None else _tensor(_load(labels), "labels")

    def _whole(self, pixels: Array) -> Array:
        if not pixels.size:
            return pixels.astype(np.uint8)
        if self._range is None:  # the training images come first, and tell for the others
            self._range = self.value_range or guess_range(pixels)
        low, high = self._range
        given = pixels.dtype == np.uint8 or self.value_range is not None
        if not given and (pixels.min() < low or pixels.max() > high):
            raise ValueError(
                f"The training images have values from {low:g} to {high:g}, others from "
                f"{pixels.min():g} to {pixels.max():g}; pass value_range=(black, white)."
            )
        wide = pixels.dtype == np.uint16 or self._range == (0, 65535)
        return quantise(pixels, self._range, self.bits or (16 if wide else 8))


def _labels_for(images: Tensor, labels: Tensor) -> Tensor:
    if labels.shape != (len(images),):
        raise ValueError(
            f"Expected one label per image, shape ({len(images)},), got {tuple(labels.shape)}."
        )
    return labels


def _opened(path: str | Path) -> Any:  # noqa: ANN401
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"The file {file} {what} (looked for {file.resolve()}); name a .npy or .npz file."
        )
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise _refused(file, error) from error


def _refused(file: str | Path, error: Exception) -> ValueError:
    if "pickle" in str(error):  # NumPy says so of whatever it does not know
        with Path(file).expanduser().open("rb") as opened:
            start = opened.read(2)
        if start[:1] != b"\x80" and start not in {b"\x93N", b"PK"}:
            return ValueError(f"The file {file} is neither a .npy nor a .npz file.")
        return ValueError(
            f"The file {file} holds pickled Python objects, which are never loaded (they can run "
            "code); save a numeric array: np.save(path, np.stack(images).astype(np.uint8))."
        )
    return ValueError(f"The file {file} cannot be read as .npy or .npz: {error}")


def _member(path: str | Path, key: str, required: bool) -> Any:  # noqa: ANN401
    archive = _opened(path)
    if isinstance(archive, np.ndarray):
        raise ValueError(f"The file {path} is a single array in spite of its name; call it .npy.")
    with archive:
        if key in archive.files:
            try:
                return archive[key]
            except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
                raise _refused(path, error) from error
        if not required:
            return None
        names = ", ".join(repr(name) for name in archive.files) or "nothing"
        raise ValueError(
            f"The file {path} has no array {key!r}, it holds {names}; name the right one with "
            "images_key and labels_key."
        )


def _load(value: ArrayLike) -> Any:  # noqa: ANN401
    if not isinstance(value, str | Path):
        return value
    loaded = _opened(value)
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        raise ValueError(f"The file {value} is an archive (.npz); expected a single array (.npy).")
    return loaded


def _tensor(value: Any, what: str) -> Tensor:  # noqa: ANN401
    return (
        value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(_array(value, what))
    )


def _array(value: Any, what: str) -> Array:  # noqa: ANN401
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "uifb":
        raise ValueError(
            f"Expected {what} as a numeric array, got dtype {array.dtype}; objects and text are "
            "not loaded, convert them first."
        )
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def _arranged(images: Tensor, channels_last: bool | None) -> Tensor:
    shape = tuple(images.shape)
    if images.ndim not in (3, 4):
        raise ValueError(f"Expected images (N, H, W), (N, H, W, C) or (N, C, H, W), got {shape}.")
    if images.ndim == 3:
        if channels_last is not None:
            warnings.warn(
                f"channels_last is ignored: images of shape {shape} have no axis of channels.",
                stacklevel=2,
            )
        return images[:, None]
    if channels_last is None:
        first, last = shape[1] <= 4, shape[3] <= 4
        if first == last:
            raise ValueError(
                f"The images' shape {shape} does not tell where the channels are; pass "
                "channels_last=True for (N, H, W, C) or channels_last=False for (N, C, H, W)."
            )
        channels_last = last
    return images.movedim(3, 1).contiguous() if channels_last else images
