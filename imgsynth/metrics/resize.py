"""The resizes behind published scores, by name: each tool's FID is one of these and no other.

All take uint8 ``(N, C, H, W)`` and a size, and return float32 ``(N, C, size, size)`` from 0 to
255, not rounded. On a photograph the pixels of ``tf1-bilinear`` and ``torch-bilinear`` are up to 89
levels apart. ``torch-antialias`` and ``pil-bilinear`` are the same up to rounding; where images
grow, as from 32 pixels, ``torch-bilinear`` is a third.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Resize = Callable[[Tensor, int], Tensor]


def tf1_bilinear(images: Tensor, size: int) -> Tensor:
    """Resize as TensorFlow 1: output pixel j lies at ``j * old / new``, without half pixels.

    Shifts the image towards its upper left and does not smooth before it shrinks. Inside the
    TensorFlow graph of FID, in torch-fidelity and in StyleGAN2-ADA.

    Args:
        images: uint8 ``(N, C, H, W)``.
        size: Side wanted, in pixels.

    Returns:
        float32 ``(N, C, size, size)`` from 0 to 255.

    Example:
        >>> tf1_bilinear(torch.tensor([[[[0, 80], [0, 80]]]], dtype=torch.uint8), 4)[0, 0, 0]
        tensor([ 0., 40., 80., 80.])
    """
    whole = images.to(torch.float32)
    for axis in (3, 2):  # rows first: the order decides the last bit
        length = images.shape[axis]
        place = torch.arange(size, device=images.device, dtype=torch.float32)
        place = place * torch.tensor(length / size, device=images.device, dtype=torch.float32)
        low = place.long()
        share = (place - low).reshape(-1, *[1] * (3 - axis))
        here = whole.index_select(axis, low)
        there = whole.index_select(axis, (low + 1).clamp_max(length - 1))
        whole = there.sub_(here).mul_(share).add_(here)
    return whole


def torch_bilinear(images: Tensor, size: int) -> Tensor:
    """Resize by ``interpolate``, half-pixel centres, without smoothing before it shrinks.

    In pytorch-fid, in clean-fid's "legacy_pytorch" and in StudioGAN's "legacy", its default.

    Args:
        images: uint8 ``(N, C, H, W)``.
        size: Side wanted, in pixels.

    Returns:
        float32 ``(N, C, size, size)`` from 0 to 255.

    Example:
        >>> torch_bilinear(torch.tensor([[[[0, 80], [0, 80]]]], dtype=torch.uint8), 4)[0, 0, 0]
        tensor([ 0., 20., 60., 80.])
    """
    return F.interpolate(images.to(torch.float32), (size, size), mode="bilinear").clamp_(0, 255)


def torch_antialias(images: Tensor, size: int) -> Tensor:
    """Resize by ``interpolate``, half-pixel centres, smoothing before it shrinks.

    In torchmetrics, unless ``antialias=False``. The filter is Pillow's bilinear one.

    Args:
        images: uint8 ``(N, C, H, W)``.
        size: Side wanted, in pixels.

    Returns:
        float32 ``(N, C, size, size)`` from 0 to 255.
    """
    whole = images.to(torch.float32)
    return F.interpolate(whole, (size, size), mode="bilinear", antialias=True).clamp_(0, 255)


def pil_bicubic(images: Tensor, size: int) -> Tensor:
    """Resize by Pillow's bicubic filter on floats, clip to 0 to 255, do not round.

    clean-fid's "clean", which smooths before it shrinks. On the CPU, one channel at a time.

    Args:
        images: uint8 ``(N, C, H, W)``.
        size: Side wanted, in pixels.

    Returns:
        float32 ``(N, C, size, size)`` from 0 to 255, on the images' device.

    Source:
        Parmar, Zhang, Zhu 2022, "On Aliased Resizing and Surprising Subtleties in GAN
        Evaluation", section 4.
    """
    return _by_pillow(images, size, Image.Resampling.BICUBIC).clamp_(0, 255)


def pil_bilinear(images: Tensor, size: int) -> Tensor:
    """Resize by Pillow's bilinear filter on floats, do not round.

    StudioGAN's "friendly" for the Inception network. On the CPU, one channel at a time.

    Args:
        images: uint8 ``(N, C, H, W)``.
        size: Side wanted, in pixels.

    Returns:
        float32 ``(N, C, size, size)`` from 0 to 255, on the images' device.
    """
    return _by_pillow(images, size, Image.Resampling.BILINEAR)


def _by_pillow(images: Tensor, size: int, method: Image.Resampling) -> Tensor:
    """Resize channels as Pillow's float images, which is what these scores are defined by."""
    channels = images.flatten(0, 1).cpu().to(torch.float32).numpy()
    resized = [np.asarray(Image.fromarray(c).resize((size, size), method)) for c in channels]
    whole = torch.from_numpy(np.stack(resized)).to(images.device)
    return whole.reshape(*images.shape[:2], size, size)


RESIZES: Mapping[str, Resize] = MappingProxyType(
    {
        "tf1-bilinear": tf1_bilinear,
        "torch-bilinear": torch_bilinear,
        "torch-antialias": torch_antialias,
        "pil-bicubic": pil_bicubic,
        "pil-bilinear": pil_bilinear,
    }
)
"""The resizes by the names that protocols use."""


def check_resize(name: str) -> None:
    """Check that a resize of this name exists.

    Raises:
        ValueError: If there is none.
    """
    if name not in RESIZES:
        raise ValueError(f"There is no resize {name!r}; choose one of {', '.join(RESIZES)}.")
