"""PNG with 16 bits a channel, which nothing else we use reads whole and safely."""

import struct
import zlib
from typing import IO, Any

import numpy as np
from PIL import Image

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_WHOLE = ((0, 0, 1, 1),)
# Where the seven passes of an interlaced image start, and their steps: x, y, dx, dy.
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def read_png16(
    file: IO[bytes], width: int, height: int, channels: int, interlaced: bool = False
) -> np.ndarray[Any, Any]:
    """The pixels of a PNG file with 16 bits a channel.

    Pillow drops the lower bytes of colours, and torchvision's decoder ends the process if a file
    is broken. But PNG's filters treat each byte of a pixel apart from the others, so the upper
    bytes of all samples are an image of 8 bits under the same filters, and so are the lower ones:
    Pillow undoes them.

    Args:
        file: The file, opened for reading bytes.
        width: As its header says; so are the others.
        height: Rows of pixels.
        channels: 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
        interlaced: Whether its pixels come in seven passes.

    Returns:
        ``(H, W, C)``, uint16.

    Raises:
        ValueError: If pixels are missing, or a checksum is wrong.
        zlib.error: If the compressed data is broken.

    Source:
        W3C 2003, "Portable Network Graphics (PNG) Specification", sections 8 and 9.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(file, "PNG")
        >>> read_png16(file, width=3, height=1, channels=1).squeeze()
        array([    0,   257, 65535], dtype=uint16)
    """
    shapes = []
    for x, y, dx, dy in _PASSES if interlaced else _WHOLE:
        rows, columns = -(-(height - y) // dy), -(-(width - x) // dx)
        if rows > 0 and columns > 0:
            shapes.append((rows, 1 + 2 * channels * columns))
    data = np.frombuffer(_inflated(file, sum(rows * size for rows, size in shapes)), np.uint8)
    upper: list[bytes] = []
    lower: list[bytes] = []
    for rows, size in shapes:
        filtered, data = data[: rows * size].reshape(rows, size), data[rows * size :]
        for half, first in ((upper, 1), (lower, 2)):
            half.append(np.concatenate([filtered[:, :1], filtered[:, first::2]], 1).tobytes())
    mode = _MODES[channels]
    high, low = (
        np.array(
            Image.frombytes(
                mode,
                (width, height),
                zlib.compress(b"".join(half), 0),
                "zip",
                mode,
                int(interlaced),
            ),
            dtype=np.uint16,
        )
        for half in (upper, lower)
    )
    return (high * np.uint16(256) + low).reshape(height, width, channels)


def _inflated(file: IO[bytes], size: int) -> bytes:
    """The first ``size`` bytes that the chunks of pixels hold."""
    file.seek(8)
    parts = []
    while len(start := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", start)
        part, checksum = file.read(length), file.read(4)
        if name == b"IDAT":
            if zlib.crc32(name + part).to_bytes(4, "big") != checksum:
                raise ValueError("the checksum of its pixels is wrong")
            parts.append(part)
    data = zlib.decompressobj().decompress(b"".join(parts), size)
    if len(data) < size:
        raise ValueError(f"its pixels take {size:,} bytes, it has {len(data):,}")
    return data
