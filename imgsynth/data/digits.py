"""Handwritten digits that come with scikit-learn: real images without a download."""

from typing import Any

import numpy as np
import torch

from imgsynth.data.base import ImageDataModule, Split, resize


class Digits(ImageDataModule):
    """1,797 scans of handwritten digits, 8x8 pixels, gray, ten classes.

    The scans have 17 levels, stored as uint8 ``round(level * 255 / 16)``. One fixed split: the
    first 1,297 of ``np.random.default_rng(0).permutation(1797)`` train, the last 500 test.

    Args:
        size: Resize the images to ``size x size`` pixels (bilinear). None keeps 8x8.
        kwargs: What every :class:`~imgsynth.data.base.ImageDataModule` takes.

    Source:
        Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine
        Learning Repository; scikit-learn carries its test part.

    Example:
        >>> Digits().image_shape
        (1, 8, 8)
    """

    names = tuple("0123456789")

    def __init__(self, size: int | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self.size = size

    def load_split(self, split: str) -> Split:
        """Read the digits from the installed scikit-learn."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.images))
        chosen = order[:-500] if split == "train" else order[-500:]
        pixels = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        images = resize(torch.from_numpy(pixels)[:, None], self.size)
        return images, torch.from_numpy(digits.target[chosen].astype(np.int64))
