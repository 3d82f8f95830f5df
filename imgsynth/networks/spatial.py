"""The encoder and decoder of VQ-VAE: between images and maps of code vectors."""

import torch
from torch import Tensor, nn

from imgsynth.describe import Described
from imgsynth.networks.blocks import check_images, known_shape


def _code_shape(
    image_shape: tuple[int, int, int], code_dim: int, downsamplings: int, owner: str
) -> tuple[int, int, int]:
    """Return ``(code_dim, h, w)`` after halving ``downsamplings`` times."""
    height, width = image_shape[1:]
    if downsamplings < 1 or height % 2**downsamplings or width % 2**downsamplings:
        raise ValueError(
            f"{owner} halves images downsamplings times, at least once, so both sides must be "
            f"multiples of 2**downsamplings, got {height}x{width} pixels and downsamplings="
            f"{downsamplings}; take fewer, or resize or pad the images."
        )
    return code_dim, height // 2**downsamplings, width // 2**downsamplings


class _ResidualBlock(nn.Module):
    """ReLU, 3x3 convolution, ReLU, 1x1 convolution; added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(width, width, 3, 1, 1)
        self.narrow = nn.Conv2d(width, width, 1)

    def forward(self, maps: Tensor) -> Tensor:
        hidden: Tensor = self.narrow(torch.relu(self.wide(torch.relu(maps))))
        return maps + hidden


class SpatialEncoder(Described, nn.Module):
    """Strided convolutions and residual blocks, from an image to a map of code vectors.

    Args:
        image_shape: ``(channels, height, width)``; sides are multiples of ``2**downsamplings``.
        code_dim: Channels of the map; that of the quantiser.
        downsamplings: How often the sides are halved. 8x8 pixels become 4x4 places with 1.
        width: Channels of all hidden maps.
        num_res_blocks: Residual blocks after the strided convolutions.

    Attributes:
        code_shape: ``(code_dim, h, w)``.

    Raises:
        ValueError: If ``image_shape`` is missing or its sides cannot be halved so often.

    Source:
        Van den Oord et al. 2017, "Neural Discrete Representation Learning", section 4.1 (the
        defaults); the 1x1 convolution to ``code_dim`` channels is its official implementation's.

    Example:
        >>> SpatialEncoder((1, 8, 8), code_dim=4, downsamplings=1, width=8).code_shape
        (4, 4, 4)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        code_dim: int = 64,
        downsamplings: int = 2,
        width: int = 256,
        num_res_blocks: int = 2,
    ) -> None:
        super().__init__()
        self.image_shape = known_shape(image_shape, "SpatialEncoder")
        self.code_shape = _code_shape(self.image_shape, code_dim, downsamplings, "SpatialEncoder")
        layers: list[nn.Module] = []
        previous = self.image_shape[0]
        for n in range(downsamplings):
            layers += [nn.ReLU()] * (n > 0)
            layers.append(nn.Conv2d(previous, width, 4, 2, 1))
            previous = width
        layers += [_ResidualBlock(width) for _ in range(num_res_blocks)]
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(width, code_dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: ``(B, *image_shape)`` in [-1, 1].

        Returns:
            ``(B, code_dim, h, w)``, any real numbers.

        Raises:
            ValueError: If the images have another shape.
        """
        check_images(images, self.image_shape, "SpatialEncoder")
        maps: Tensor = self.layers(images)
        return maps


class SpatialDecoder(Described, nn.Module):
    """Residual blocks and transposed convolutions, from a map of code vectors to an image.

    Args:
        image_shape: ``(channels, height, width)``; sides are multiples of ``2**downsamplings``.
        code_dim: Channels of the map; that of the quantiser.
        downsamplings: As in :class:`SpatialEncoder`; so are the others.
        width: Channels of all hidden maps.
        num_res_blocks: Residual blocks before the transposed convolutions.

    Attributes:
        code_shape: ``(code_dim, h, w)``.

    Raises:
        ValueError: If ``image_shape`` is missing or its sides cannot be halved so often.

    Source:
        Van den Oord et al. 2017, "Neural Discrete Representation Learning", section 4.1 (the
        defaults); the first 3x3 convolution is its official implementation's.

    Example:
        >>> decoder = SpatialDecoder((1, 8, 8), code_dim=4, downsamplings=1, width=8)
        >>> decoder(torch.zeros(2, 4, 4, 4)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        code_dim: int = 64,
        downsamplings: int = 2,
        width: int = 256,
        num_res_blocks: int = 2,
    ) -> None:
        super().__init__()
        self.image_shape = known_shape(image_shape, "SpatialDecoder")
        self.code_shape = _code_shape(self.image_shape, code_dim, downsamplings, "SpatialDecoder")
        layers: list[nn.Module] = [nn.Conv2d(code_dim, width, 3, 1, 1)]
        layers += [_ResidualBlock(width) for _ in range(num_res_blocks)]
        for n in reversed(range(downsamplings)):
            channels = width if n else self.image_shape[0]
            layers += [nn.ReLU(), nn.ConvTranspose2d(width, channels, 4, 2, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, codes: Tensor) -> Tensor:
        """Decode codes.

        Args:
            codes: ``(B, code_dim, h, w)``.

        Returns:
            ``(B, *image_shape)``, any real numbers: a likelihood says what they mean.

        Raises:
            ValueError: If the codes have another shape.
        """
        if codes.ndim != 4 or codes.shape[1:] != self.code_shape:
            raise ValueError(
                f"SpatialDecoder takes codes of shape (B, {', '.join(map(str, self.code_shape))}), "
                f"got {tuple(codes.shape)}; give encoder and decoder the same image_shape, "
                "code_dim and downsamplings."
            )
        outputs: Tensor = self.layers(codes)
        return outputs
