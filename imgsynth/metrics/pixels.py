"""Pixels as features: for images without labels and machines without weights."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imgsynth.describe import Described
from imgsynth.metrics.extractor import Extractor


class PixelExtractor(Described, Extractor):
    """The pixels themselves, in [0, 1], as features.

    It needs neither weights nor labels, and says little about what images show: for the sliced
    Wasserstein distance, as a curve of progress.

    Args:
        size: Larger images are averaged down so that their longer side has so many pixels.

    Raises:
        ValueError: If ``size`` is below 1.

    Example:
        >>> features, _ = PixelExtractor(size=4)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
        >>> features.shape
        torch.Size([2, 48])
    """

    name = "pixels"
    channels = None

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}.")
        self.size = size
        # without a weight nothing would remember the device
        self.register_buffer("scale", torch.tensor(255.0))
        self.scale: Tensor
        self.freeze()

    def extract(self, images: Tensor) -> tuple[Tensor, None]:
        """Average down, and put a row's pixels one after the other."""
        height, width = images.shape[2:]
        longer = max(height, width)
        pixels = images.to(torch.float32)
        if longer > self.size:
            rows, columns = (max(1, round(s * self.size / longer)) for s in (height, width))
            pixels = F.adaptive_avg_pool2d(pixels, (rows, columns))
        return pixels.flatten(1) / self.scale, None

    def identity(self) -> dict[str, Any]:
        """Return name and size: there are no weights."""
        return {"name": self.name, "weights": "none", "size": self.size}
