"""How an image of any size and kind becomes one of the data set's."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from imgsynth.data.decode import UnusableImage

Fit = Literal["crop", "pad", "stretch", "cut"]
Interpolation = Literal["bilinear", "bicubic"]

_COLOURS = {1: 1, 2: 1, 3: 3, 4: 3}  # channels of an image without its alpha


@dataclass(frozen=True)
class Rule:
    """Turns images of any size, number of channels and depth into alike ones.

    ``fit`` says what happens if height and width are not in the ratio of ``size``:

    - ``crop``: the image is resized to cover ``size``, its short side exactly, and the middle is
      cut out. For squares this is torchvision's ``Resize(size)`` and ``CenterCrop(size)``.
    - ``pad``: it is resized to fit inside ``size``, and put into the middle of ``background``.
    - ``stretch``: both sides are resized to ``size``.
    - ``cut``: the middle is cut out, without resizing; smaller images are unusable.

    Smaller images are enlarged. Gray is the luma of ITU-R BT.601, as in Pillow. Alpha that the
    data set does not keep is composited over ``background`` before resizing; alpha that it keeps
    weights the colours while they are resized, so that transparent pixels do not bleed. A new
    alpha channel is opaque. 16 bits become 8 last, ``round(x / 257)``; 8 become 16 as ``x * 257``.

    Args:
        size: Height and width in pixels. None keeps the source's.
        fit: ``crop``, ``pad``, ``stretch`` or ``cut``.
        interpolation: ``bilinear`` or ``bicubic``, always with antialiasing.
        channels: 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha, or the number that the images
            have anyway. None keeps the source's.
        bits: 8 or 16. None keeps the source's.
        background: Gray level from 0 to 255 behind transparent pixels and around padded images.

    Raises:
        ValueError: If a setting is out of range, or ``fit`` is set without a size.

    Example:
        >>> rule = Rule(size=(2, 4), fit="pad", background=9)
        >>> rule.apply(torch.full((1, 8, 8), 100, dtype=torch.uint8))
        tensor([[[  9, 100, 100,   9],
                 [  9, 100, 100,   9]]], dtype=torch.uint8)
    """

    size: tuple[int, int] | None = None
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"
    channels: int | None = None
    bits: Literal[8, 16] | None = None
    background: int = 255

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.size is not None and not _is_size(self.size):
            raise ValueError(f"size must be (height, width), both at least 1, got {self.size}.")
        if self.fit not in get_args(Fit):
            raise ValueError(f"fit must be one of {', '.join(get_args(Fit))}, got {self.fit!r}.")
        if self.size is None and self.fit != "crop":
            raise ValueError(f"fit={self.fit!r} needs a size, (height, width).")
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(
                f"interpolation must be bilinear or bicubic, got {self.interpolation!r}."
            )
        self._check_pixels()

    def _check_pixels(self) -> None:
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}.")
        if self.bits not in (None, 8, 16):
            raise ValueError(f"bits must be 8 or 16, got {self.bits}.")
        if not 0 <= self.background <= 255:
            raise ValueError(f"background must lie between 0 and 255, got {self.background}.")

    def apply(self, image: Tensor) -> Tensor:
        """The image as the data set has it.

        Args:
            image: ``(C, H, W)``, uint8 or uint16.

        Returns:
            ``(C', H', W')``, uint8 or uint16, contiguous; possibly ``image`` itself.

        Raises:
            UnusableImage: If the image is smaller than the size to cut, or its number of channels
                cannot become the wanted one.
        """
        channels = self.channels or len(image)
        if channels != len(image) and not {channels, len(image)} <= _COLOURS.keys():
            raise UnusableImage(
                f"has {len(image)} channels, which cannot become {channels}; set channels to "
                "None or make the files alike"
            )
        if _has_alpha(len(image)) and not _has_alpha(channels):
            image = self._composited(image)
        if self.size is not None:
            image = self._fitted(image, self.size)
        return _with_bits(_with_channels(image, channels), self.bits).contiguous()

    def kept(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The part of an image that stays visible.

        Args:
            height: The image's height in pixels.
            width: The image's width in pixels.

        Returns:
            ``(top, left, height, width)`` in whole pixels of the image.

        Raises:
            UnusableImage: If the image is smaller than the size to cut.

        Example:
            >>> Rule(size=(256, 256)).kept(375, 500)
            (0, 62, 375, 375)
        """
        if self.size is None or self.fit in ("pad", "stretch"):
            return 0, 0, height, width
        resized = self._resized(height, width, self.size)
        edges = []
        for source, scaled, wanted in zip((height, width), resized, self.size, strict=True):
            start = _middle(scaled, wanted)
            edges.append(
                (round(start * source / scaled), round((start + wanted) * source / scaled))
            )
        (top, bottom), (left, right) = edges
        return top, left, max(bottom - top, 1), max(right - left, 1)

    def _resized(self, height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the whole image after resizing, before it is cut or padded."""
        wanted_height, wanted_width = size
        if self.fit == "cut":
            if height < wanted_height or width < wanted_width:
                raise UnusableImage(
                    f"is {height}x{width} pixels, smaller than the "
                    f"{wanted_height}x{wanted_width} to cut"
                )
            return height, width
        if self.fit == "stretch":
            return size
        by_height = (width * wanted_height >= height * wanted_width) == (self.fit == "crop")
        # Rounded down like torchvision's Resize, in whole numbers.
        if by_height:
            return wanted_height, max(wanted_height * width // height, 1)
        return max(wanted_width * height // width, 1), wanted_width

    def _fitted(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = self._resized(image.shape[1], image.shape[2], size)
        if (height, width) != image.shape[1:]:
            image = self._interpolated(image, (height, width))
        if self.fit == "pad":
            return self._padded(image, size)
        top, left = _middle(height, size[0]), _middle(width, size[1])
        return image[:, top : top + size[0], left : left + size[1]]

    def _interpolated(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        transparent = _is_transparent(image)
        # torch's uint8 kernel is the fastest, but fails for a single pixel.
        if image.dtype == torch.uint8 and not transparent and size != (1, 1):
            return self._interpolate(image, size)
        pixels = image.float()
        if transparent:
            pixels[:-1] *= pixels[-1:]
        pixels = self._interpolate(pixels, size)
        if transparent:
            pixels[:-1] /= pixels[-1:].clamp(min=1e-3)  # the colour of nothing does not matter
        return pixels.round_().clamp_(0, _brightest(image)).to(image.dtype)

    def _interpolate(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = size
        if width == 1 < height:  # where torch's float kernel repeats the first pixel
            return self._interpolate(image.transpose(1, 2), (1, height)).transpose(1, 2)
        return functional.interpolate(image[None], size, mode=self.interpolation, antialias=True)[0]

    def _padded(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        channels, height, width = image.shape
        if (height, width) == size:
            return image
        canvas = image.new_full((channels, *size), self.background * _brightest(image) // 255)
        if _has_alpha(channels):
            canvas[-1] = _brightest(image)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        canvas[:, top : top + height, left : left + width] = image
        return canvas

    def _composited(self, image: Tensor) -> Tensor:
        if not _is_transparent(image):
            return image[:-1]
        brightest = _brightest(image)
        background = self.background * brightest // 255
        pixels = image.float() if image.dtype == torch.uint8 else image.double()
        alpha = pixels[-1:].div_(brightest)
        return pixels[:-1].sub_(background).mul_(alpha).add_(background).round_().to(image.dtype)


def _is_size(size: object) -> bool:
    return isinstance(size, tuple) and len(size) == 2 and min(size) >= 1


def _has_alpha(channels: int) -> bool:
    return channels in (2, 4)


def _is_transparent(image: Tensor) -> bool:
    return _has_alpha(len(image)) and bool((image[-1] != _brightest(image)).any())


def _brightest(image: Tensor) -> int:
    return 255 if image.dtype == torch.uint8 else 65535


def _middle(outer: int, inner: int) -> int:
    return round((outer - inner) / 2)  # halves to even, like torchvision's CenterCrop


def _with_channels(image: Tensor, channels: int) -> Tensor:
    if len(image) == channels:
        return image
    colours = image[:-1] if _has_alpha(len(image)) else image
    if len(colours) > _COLOURS[channels]:
        colours = _luma(colours)
    colours = colours.expand(_COLOURS[channels], -1, -1)
    if not _has_alpha(channels):
        return colours
    opaque = torch.full_like(image[-1:], _brightest(image))
    return torch.cat([colours, image[-1:] if _has_alpha(len(image)) else opaque])


def _luma(image: Tensor) -> Tensor:
    """Gray from RGB with Pillow's whole-number weights of ITU-R BT.601."""
    red, green, blue = image.to(torch.int32 if image.dtype == torch.uint8 else torch.int64)
    gray: Tensor = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return gray[None].to(image.dtype)


def _with_bits(image: Tensor, bits: int | None) -> Tensor:
    if bits == 16 and image.dtype == torch.uint8:
        return (image.int() * 257).to(torch.uint16)
    if bits == 8 and image.dtype == torch.uint16:
        return ((image.int() + 128) // 257).to(torch.uint8)  # round(x / 257)
    return image
