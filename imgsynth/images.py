"""The borders: conversion of value ranges, grids of images, PNG and GIF files.

Inside, images are float ``(B, C, H, W)`` in [-1, 1]; files and arrays hold whole numbers. The
conversions are here and nowhere else.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_SMALLEST_CELL = 48


def from_uint8(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Map whole numbers to [-1, 1]: 0 to -1, the largest to 1.

    Each value is the float nearest to ``2 * n / 255 - 1`` (or 65535), so that float32 keeps all
    256 and all 65,536 values apart and :func:`to_uint8` brings the 256 back.

    Args:
        images: uint8 or uint16 of any shape, on any device.
        dtype: The float type wanted. Half precision keeps the 256 values apart, not the 65,536.

    Raises:
        ValueError: If the type is neither uint8 nor uint16, or ``dtype`` is no float.

    Example:
        >>> from_uint8(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([-1.0000, -0.6000,  1.0000])
    """
    if images.dtype not in {torch.uint8, torch.uint16}:
        raise ValueError(
            f"from_uint8 takes uint8 or uint16, got {images.dtype}; floats are expected to be in "
            "[-1, 1] already."
        )
    if not dtype.is_floating_point:
        raise ValueError(f"from_uint8 makes a float type, got dtype={dtype}.")
    largest = torch.iinfo(images.dtype).max
    working = torch.promote_types(dtype, torch.float32)
    half = largest / 2  # n - half is exact, so that only the division rounds
    return images.to(working).sub_(half).div_(half).to(dtype)


def to_uint8(images: Tensor) -> Tensor:
    """Map [-1, 1] to whole numbers: clamp, scale to 0 to 255, round to the nearest.

    Looks at the values, so it waits for the GPU: for the border only, never in a step.

    Args:
        images: Float of any shape, on any device.

    Raises:
        ValueError: If the type is no float, or a value is NaN or infinite.

    Example:
        >>> to_uint8(torch.tensor([-1.0, -0.6, 7.0]))
        tensor([  0,  51, 255], dtype=torch.uint8)
    """
    if not images.is_floating_point():
        raise ValueError(f"to_uint8 takes floats in [-1, 1], got {images.dtype}.")
    num_bad = int((~images.isfinite()).sum())
    if num_bad:
        raise ValueError(
            f"to_uint8: {num_bad} of {images.numel()} values are NaN or infinite, so these are no "
            "images; the network that made them has diverged."
        )
    wide = images.detach().to(torch.promote_types(images.dtype, torch.float32))
    return wide.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def grid(
    images: Tensor,
    columns: int | None = None,
    padding: int = 2,
    value: float = -0.5,
    scale: int | None = None,
) -> Tensor:
    """Arrange images in rows, left to right and top to bottom.

    Args:
        images: ``(B, C, H, W)`` in [-1, 1].
        columns: Images in a row; by default about as many as rows.
        padding: Pixels between images and around them, after scaling.
        value: Intensity of the padding and of cells left over, in [-1, 1].
        scale: Whole factor by which images are enlarged, by repeating pixels; by default the
            smallest that makes both sides at least 48 pixels.

    Returns:
        ``(C, H', W')`` in [-1, 1], detached.

    Raises:
        ValueError: If there are no images, or a number is out of range.

    Example:
        >>> grid(torch.zeros(6, 1, 8, 8), columns=3, scale=6).shape
        torch.Size([1, 102, 152])
    """
    if images.ndim != 4 or not images.numel():
        raise ValueError(
            f"grid takes at least one image as (B, C, H, W), got shape {tuple(images.shape)}."
        )
    num, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(num)) if columns is None else columns
    scale = math.ceil(_SMALLEST_CELL / min(height, width)) if scale is None else scale
    if columns < 1 or padding < 0 or scale < 1:
        raise ValueError(
            "grid: columns and scale must be at least 1 and padding at least 0, got "
            f"columns={columns}, scale={scale}, padding={padding}."
        )
    rows = math.ceil(num / columns)
    cells = images.new_full((rows * columns, channels, height, width), value)
    cells[:num] = images.detach()
    cells = cells.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    cells = cells.view(rows, columns, *cells.shape[1:]).permute(2, 0, 3, 1, 4)
    high, wide = height * scale + padding, width * scale + padding
    canvas = images.new_full((channels, rows, high, columns, wide), value)
    canvas[:, :, padding:, :, padding:] = cells
    whole = images.new_full((channels, rows * high + padding, columns * wide + padding), value)
    whole[:, : rows * high, : columns * wide] = canvas.flatten(3).flatten(1, 2)
    return whole


def _to_pillow(image: Tensor) -> Image.Image:
    if image.ndim != 3 or image.shape[0] not in _MODES:
        raise ValueError(
            "An image file holds one image (C, H, W) of 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 "
            f"(RGB, alpha) channels, got shape {tuple(image.shape)}; choose the channels to show, "
            "for example image[:3], or images[:, :3] before grid()."
        )
    whole = image if image.dtype == torch.uint8 else to_uint8(image)
    array = whole.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if len(image) == 1 else array)


def _replace(path: Path, picture: Image.Image, **options: object) -> None:
    """Write beside the target and rename, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            picture.save(file, **options)  # type: ignore[arg-type]
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_png(path: str | Path, image: Tensor, text: Mapping[str, str] | None = None) -> None:
    """Write an 8-bit PNG, whole or not at all.

    Args:
        path: The file; missing folders are made, an old file is replaced at the very end.
        image: ``(C, H, W)``, float in [-1, 1] or uint8: gray, gray and alpha, RGB or RGB and
            alpha, by the number of channels.
        text: Where the image comes from: text chunks of the file, read again by
            ``PIL.Image.open(path).text``. Keys are 1 to 79 Latin-1 characters.

    Raises:
        ValueError: If the shape is no single image of 1 to 4 channels, or a value is not finite.
        OSError: If the file cannot be written.
    """
    chunks = PngImagePlugin.PngInfo()
    for key, words in (text or {}).items():
        chunks.add_text(key, words)
    _replace(Path(path), _to_pillow(image), format="PNG", pnginfo=chunks)


def _gif_frame(frame: str | Path | Tensor) -> Image.Image:
    if isinstance(frame, Tensor):
        picture = _to_pillow(frame)
    else:
        with Image.open(frame) as opened:
            opened.load()
            picture = opened
    if picture.mode in {"L", "LA"}:
        return picture.convert("L")
    # No dithering: its noise would flicker from frame to frame.
    return picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)


def save_gif(
    path: str | Path,
    frames: Iterable[str | Path | Tensor],
    seconds_per_frame: float = 0.2,
    hold: float = 2.0,
) -> None:
    """Write an endlessly looping GIF, whole or not at all.

    Frames are read one by one. Gray frames keep their 256 grays; coloured ones get the 256
    colours that suit each best. Transparency is dropped.

    Args:
        path: The file; missing folders are made, an old file is replaced at the very end.
        frames: PNG files, or images ``(C, H, W)`` as in :func:`save_png`, all of one size.
        seconds_per_frame: Time a frame is shown, 0.02 to 600 s; the format counts hundredths.
        hold: Additional seconds for the last frame, 0 to 50.

    Raises:
        ValueError: If there are no frames, their sizes differ, or a time is out of range.
        OSError: If a file cannot be read or written.
    """
    if not 0.02 <= seconds_per_frame <= 600 or not 0 <= hold <= 50:
        raise ValueError(
            "save_gif: seconds_per_frame must be 0.02 to 600 and hold 0 to 50, got "
            f"seconds_per_frame={seconds_per_frame}, hold={hold}."
        )
    sources = list(frames)
    if not sources:
        raise ValueError(f"save_gif: no frames to write to {path}; pass at least one.")
    first = _gif_frame(sources[0])

    def others() -> Iterator[Image.Image]:
        for number, source in enumerate(sources[1:], 2):
            picture = _gif_frame(source)
            if picture.size != first.size:
                raise ValueError(
                    f"save_gif: frame {number} has {picture.size[0]}x{picture.size[1]} pixels, "
                    f"the first {first.size[0]}x{first.size[1]}; all must have one size."
                )
            yield picture

    times = [round(1000 * seconds_per_frame)] * len(sources)
    times[-1] += round(1000 * hold)
    _replace(
        Path(path),
        first,
        format="GIF",
        save_all=True,
        append_images=others(),
        duration=times if len(times) > 1 else times[0],
        loop=0,
    )
