"""Random mirror images."""

import torch
from torch import Tensor, nn

from imgsynth.describe import Described


class RandomFlip(Described, nn.Module):
    """Flip each image left to right with probability ``p``, each by its own draw.

    Differentiable with respect to the images. Applies in training mode only: in evaluation mode
    the images pass unchanged. Not for data whose mirror image means something else, such as
    digits or text.

    Args:
        p: Probability of a flip, 0 to 1.

    Raises:
        ValueError: If ``p`` is not between 0 and 1.

    Source:
        Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks",
        section 4.1.

    Example:
        >>> RandomFlip(p=1.0)(torch.tensor([[[[0.0, 0.5, 1.0]]]]))
        tensor([[[[1.0000, 0.5000, 0.0000]]]])
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"RandomFlip: p must lie between 0 and 1, got {p}.")
        self.p = p

    def forward(self, images: Tensor) -> Tensor:
        """Flip some of the images ``(B, C, H, W)``, float or uint8, of any value range.

        The draws come from the default generator of the images' device.
        """
        if not self.training or self.p == 0:
            return images
        flipped = torch.rand(len(images), 1, 1, 1, device=images.device) < self.p
        return torch.where(flipped, images.flip(3), images)
