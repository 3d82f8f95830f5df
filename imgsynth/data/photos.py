"""Photographs that scikit-image and scikit-learn carry: natural images without a download."""

import difflib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imgsynth.data.base import ImageDataModule, Split

_FILES = {
    "astronaut": "skimage/data/astronaut.png",
    "brick": "skimage/data/brick.png",
    "camera": "skimage/data/camera.png",
    "cell": "skimage/data/cell.png",
    "chelsea": "skimage/data/chelsea.png",
    "china": "sklearn/datasets/images/china.jpg",
    "clock_motion": "skimage/data/clock_motion.png",
    "coffee": "skimage/data/coffee.png",
    "coins": "skimage/data/coins.png",
    "flower": "sklearn/datasets/images/flower.jpg",
    "grass": "skimage/data/grass.png",
    "gravel": "skimage/data/gravel.png",
    "hubble_deep_field": "skimage/data/hubble_deep_field.jpg",
    "ihc": "skimage/data/ihc.png",
    "microaneurysms": "skimage/data/microaneurysms.png",
    "moon": "skimage/data/moon.png",
    "motorcycle_left": "skimage/data/motorcycle_left.png",
    "motorcycle_right": "skimage/data/motorcycle_right.png",
    "page": "skimage/data/page.png",
    "retina": "skimage/data/retina.jpg",
    "rocket": "skimage/data/rocket.jpg",
    "text": "skimage/data/text.png",
}
_PROJECTS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
# scikit-image's functions of another name than their file. They are suggested, never accepted: one
# picture must not be trained on under one name and tested on under another.
_OTHER_NAMES = {"cat": "chelsea", "clock": "clock_motion", "immunohistochemistry": "ihc"}
_SAME_SCENE = {"motorcycle_right": "motorcycle_left"}

PHOTOGRAPHS: tuple[str, ...] = tuple(_FILES)
"""The names of the photographs there are, in alphabetical order."""


def photograph(name: str) -> Tensor:
    """Read one whole photograph from the installed package that carries it.

    The values are those of the file; its colour profile, if any, is not applied.

    Args:
        name: One of :data:`PHOTOGRAPHS`.

    Returns:
        ``(C, H, W)`` uint8, RGB or, for gray photographs, with one channel.

    Raises:
        FileNotFoundError: If the package or its file is not there.
        ValueError: If there is no such name.

    Example:
        >>> photograph("chelsea").shape, photograph("camera").shape
        (torch.Size([3, 300, 451]), torch.Size([1, 512, 512]))
    """
    return _read(name, None)


class Photos(ImageDataModule):
    """Square patches of photographs that scikit-image and scikit-learn carry, without labels.

    A split holds its photographs in the order of their names, and of each the patches of a regular
    grid, centred, row by row. With the defaults these are 311 patches to train on and 92 to test
    on. The test photographs are ``astronaut`` and ``chelsea`` (which scikit-image's functions also
    call ``cat``); no photograph is ever on both sides.

    Other names are in :data:`PHOTOGRAPHS`. ``motorcycle_right`` is nearly the same picture as
    ``motorcycle_left`` (the other one of a stereo pair), so it is left out by default and the two
    cannot be on both sides either. The microscope, eye and star pictures (``ihc``, ``retina``,
    ``hubble_deep_field``...) are no natural images.

    Args:
        size: Side of a patch in pixels.
        stride: Pixels from one patch to the next; None takes ``size``, so that patches do not
            overlap. With half of ``size`` there are about four times as many.
        train: Names of the photographs to train on.
        test: Names of those to test on; none of them leaves the split ``test`` out.
        gray: Make all images gray, with one channel: ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B.
            Otherwise images are RGB, gray photographs with three equal channels.
        kwargs: What every :class:`~imgsynth.data.base.ImageDataModule` takes.

    Raises:
        ValueError: If a name is unknown or comes twice, or a number is out of range.

    Source:
        What the packages state: coffee (R. Michetti) and chelsea (S. van der Walt), CC0; rocket
        (SpaceX) and astronaut (NASA), public domain; china and flower (Flickr users
        danielbuechele and vultilion), CC BY 2.0; motorcycle: Scharstein et al. 2014,
        "High-Resolution Stereo Datasets with Subpixel-Accurate Ground Truth", no licence stated.

    Example:
        >>> data = Photos(size=64)
        >>> data.image_shape, data.num_images("train"), data.num_images("test")
        ((3, 64, 64), 311, 92)
    """

    def __init__(
        self,
        size: int = 64,
        stride: int | None = None,
        train: Sequence[str] = ("coffee", "rocket", "motorcycle_left", "china", "flower"),
        test: Sequence[str] = ("astronaut", "chelsea"),
        gray: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}.")
        if stride is not None and stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride}.")
        self.size = size
        self.stride = stride or size
        self.gray = gray
        self.photographs = {"train": _named(train), "test": _named(test)}
        if not self.photographs["train"]:
            raise ValueError("train must name at least one photograph, got none.")
        _check_held_out(**self.photographs)
        self.splits = ("train", "test") if self.photographs["test"] else ("train",)

    def load_split(self, split: str) -> Split:
        """Cut the photographs of one split into patches.

        Raises:
            FileNotFoundError: If a package or its file is not there.
            ValueError: If a photograph is smaller than a patch.
        """
        return torch.cat([self._patches(name) for name in self.photographs[split]]), None

    def _patches(self, name: str) -> Tensor:
        image = _read(name, "L" if self.gray else "RGB")
        channels, height, width = image.shape
        size, stride = self.size, self.stride
        if min(height, width) < size:
            raise ValueError(
                f"The photograph {name!r} is {width}x{height} pixels (width x height), smaller "
                f"than a patch of {size}x{size}; lower size to {min(height, width)} or less, or "
                "leave it out."
            )
        top, left = (height - size) % stride // 2, (width - size) % stride // 2
        grid = image[:, top:, left:].unfold(1, size, stride).unfold(2, size, stride)
        return grid.permute(1, 2, 0, 3, 4).reshape(-1, channels, size, size)


def _named(names: Sequence[str]) -> tuple[str, ...]:
    chosen = (names,) if isinstance(names, str) else tuple(names)
    for name in chosen:
        _check_known(name)
        if chosen.count(name) > 1:
            raise ValueError(f"The photograph {name!r} is named twice; name each once.")
    return chosen


def _check_known(name: str) -> None:
    if name in _FILES:
        return
    close = difflib.get_close_matches(name, PHOTOGRAPHS, n=1)
    meant = [_OTHER_NAMES[name]] if name in _OTHER_NAMES else close
    advice = f"did you mean {meant[0]!r}? There are" if meant else "there are"
    raise ValueError(f"There is no photograph {name!r}; {advice} {', '.join(PHOTOGRAPHS)}.")


def _check_held_out(train: tuple[str, ...], test: tuple[str, ...]) -> None:
    scenes = {_SAME_SCENE.get(name, name): name for name in train}
    for name in test:
        same = scenes.get(_SAME_SCENE.get(name, name))
        if same is not None:
            what = "the same photograph" if same == name else "nearly the same picture"
            raise ValueError(
                f"Trained on is {same!r}, tested on {name!r}, which is {what}; take it out of "
                "train or of test."
            )


def _read(name: str, mode: str | None) -> Tensor:
    """Read a photograph in one of Pillow's modes; None keeps the file's, gray or RGB."""
    _check_known(name)
    package, _, path = _FILES[name].partition("/")
    spec = find_spec(package)  # finds the package without importing it
    folders = (spec.submodule_search_locations if spec else None) or ()
    file = next((f for f in (Path(folder, path) for folder in folders) if f.is_file()), None)
    if file is None:
        project = _PROJECTS[package]
        problem = f"is not in {folders[0]}" if folders else "needs it installed"
        raise FileNotFoundError(
            f"The photograph {name!r} comes with {project} and {problem}; pip install {project}."
        )
    with Image.open(file) as image:
        pixels = np.array(image if mode is None else image.convert(mode))
    return torch.from_numpy(np.atleast_3d(pixels)).movedim(2, 0).contiguous()
