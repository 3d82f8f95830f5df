"""Noise on images."""

import math

import torch
from torch import Tensor, nn

from imgsynth.describe import Described


class GaussianNoise(Described, nn.Module):
    """Add independent normal noise to every pixel and channel; nothing is clamped.

    Args:
        sigma: Standard deviation, in units of an intensity from -1 to 1: the literature's sigma
            of 25 of 255 levels is ``2 * 25 / 255 = 0.196``.

    Raises:
        ValueError: If ``sigma`` is negative or not finite.

    Example:
        >>> noisy = GaussianNoise(sigma=0.5)(torch.zeros(1, 1, 100, 100))
        >>> bool(0.45 < noisy.std() < 0.55)
        True
    """

    def __init__(self, sigma: float = 0.2) -> None:
        super().__init__()
        if not 0 <= sigma < math.inf:
            raise ValueError(f"sigma must be at least 0, got {sigma}.")
        self.sigma = sigma

    def forward(self, images: Tensor) -> Tensor:
        """Return noisy images.

        Args:
            images: ``(B, C, H, W)`` in [-1, 1].

        Returns:
            Of the same shape and type, beyond [-1, 1] where the noise leads there.
        """
        noise = torch.randn(images.shape, device=images.device, dtype=images.dtype)
        return images + self.sigma * noise

    def extra_repr(self) -> str:
        """Show the standard deviation."""
        return f"sigma={self.sigma}"
