"""One image file becomes pixels, whatever its format; what is unusable says why."""

import contextlib
import re
import struct
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from imgsynth.data.png16 import read_png16

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".npy"}
)
"""Lower-case suffixes of files taken for images. Which format a file has, its content says."""

MAX_PIXELS = 178_956_970
"""Larger images are refused, as by Pillow, which takes them for decompression bombs."""

_MAGIC = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<BMP>BM)|(?P<GIF>GIF8[79]a)"
    rb"|(?P<WEBP>RIFF.{4}WEBP)|(?P<TIFF>II[*+]\0|MM\0[*+])|(?P<PPM>P[1-6]\s)|(?P<NPY>\x93NUMPY)",
    re.DOTALL,
)
# Not Image.open, which warns of images that are large but allowed.
_READERS: dict[str, Callable[[IO[bytes], str], ImageFile.ImageFile]] = {
    "JPEG": jpeg_factory,
    "PNG": PngImageFile,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "WEBP": WebPImageFile,
    "PPM": PpmImageFile,
}
_CHANNELS = {"1": 1, "L": 1, "LA": 2, "La": 2, "PA": 4, "RGBA": 4, "RGBa": 4}
_CHANNELS |= dict.fromkeys(("P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"), 3)
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
_ORIENTATION = 274  # the tag of EXIF and TIFF
_NOT_PLAIN = {0xE1, 0xEE}  # markers of EXIF and of Adobe in a JPEG
_FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
_warnings_lock = threading.Lock()


class UnusableImage(ValueError):  # noqa: N818 - says something of a file, not of a program
    """Why a file gives no image; the message is a reason without the file's name.

    Example:
        >>> str(UnusableImage("is empty (0 bytes)"))
        'is empty (0 bytes)'
    """


@dataclass(frozen=True)
class Header:
    """What a file says of its image: what :func:`decode` would give, without the pixels.

    Args:
        width: Pixels from left to right, after the EXIF orientation.
        height: Pixels from top to bottom, after the EXIF orientation.
        channels: Channels of the decoded image.
        bits: 8 (uint8) or 16 (uint16).
        format: ``JPEG``, ``PNG``, ``BMP``, ``GIF``, ``WEBP``, ``TIFF``, ``PPM`` or ``NPY``.
        mode: The pixels as they are stored: Pillow's name of the mode, or a dtype.
        rotated: Whether the EXIF orientation turns or mirrors the stored pixels.

    Example:
        >>> Header(640, 480, channels=3, bits=8, format="JPEG", mode="RGB", rotated=False).width
        640
    """

    width: int
    height: int
    channels: int
    bits: int
    format: str
    mode: str
    rotated: bool


_Opened: TypeAlias = tuple[Header, Callable[[], Tensor]]
_PASSED_ON = (UnusableImage, MemoryError, Warning)  # no fault of a file, or said already


def read_header(path: str | Path) -> Header:
    """Size and kind of the image in a file, without decoding its pixels.

    Args:
        path: The file.

    Returns:
        What :func:`decode` would give.

    Raises:
        UnusableImage: As :func:`decode`, as far as the header tells.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (6, 4)).save(f"{folder}/x.png")
        ...     header = read_header(f"{folder}/x.png")
        >>> header.height, header.width, header.channels, header.bits
        (4, 6, 1, 8)
    """
    with _file(path) as file:
        return _opened(file)[0]


def decode(path: str | Path) -> Tensor:
    """The upright pixels of an image file. Several threads may decode at once.

    Black and white becomes gray (0 and 255); palettes, CMYK, YCbCr and Lab become RGB; a
    transparent gray level, colour or palette entry becomes an alpha channel. Animations and files
    of several pages give their first. A .npy file holds ``(H, W)``, ``(H, W, C)`` or, if the
    first axis is smaller than the last, ``(C, H, W)``. Colour profiles are not applied.

    Args:
        path: The file. Its content decides about the format, not its name.

    Returns:
        ``(C, H, W)``, uint8 or, from files with 16 bits a channel, uint16; not always contiguous.
        C is 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha); others from .npy and TIFF.

    Raises:
        UnusableImage: If the file cannot be read, is no image, is truncated or broken, has no
            pixels or more than 178,956,970, or has signed, 32-bit or float ones.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (6, 4), "red").save(f"{folder}/x.png")
        ...     decode(f"{folder}/x.png")[:, 0, 0]
        tensor([255,   0,   0], dtype=torch.uint8)
    """
    with _file(path) as file:
        if (plain := _plain_jpeg(file)) is not None:
            return plain
        header, pixels = _opened(file)
        try:
            image = pixels()
        except _PASSED_ON:
            raise
        except Exception as error:
            raise _broken(header.format, error) from error
    if image.shape != (header.channels, header.height, header.width):
        raise UnusableImage(f"has pixels of shape {tuple(image.shape)}, unlike its {header}")
    return image


def _broken(kind: str, error: Exception) -> UnusableImage:
    """Pillow, tifffile and NumPy raise exceptions of many kinds for broken files."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnusableImage(f"cannot be read as {kind}: {reason}")


def _unsupported(what: str) -> UnusableImage:
    return UnusableImage(
        f"has {what} pixels, expected unsigned ones of 8 or 16 bits; scale and convert it first"
    )


def _file(path: str | Path) -> IO[bytes]:
    try:
        return Path(path).open("rb")
    except IsADirectoryError as error:
        raise UnusableImage("is a folder") from error
    except OSError as error:
        raise UnusableImage(f"cannot be opened: {error.strerror or error}") from error


def _opened(file: IO[bytes]) -> _Opened:
    """The header, and a function that decodes the pixels as long as ``file`` is open."""
    kind = "an image"
    try:
        start = file.read(29)
        match = _MAGIC.match(start)
        if match is None:
            known = "JPEG, PNG, BMP, GIF, WebP, TIFF, PPM or NPY"
            raise UnusableImage(f"is not {known}" if start else "is empty (0 bytes)")
        file.seek(0)
        kind = str(match.lastgroup)
        opened = _opened_as(kind, file, start)
    except _PASSED_ON:
        raise
    except Exception as error:
        raise _broken(kind, error) from error
    _check_size(opened[0])
    return opened


def _opened_as(kind: str, file: IO[bytes], start: bytes) -> _Opened:
    if kind == "NPY":
        return _numpy(file)
    if kind == "TIFF":
        return _tiff(file)
    if kind == "PNG" and start[24] == 16:
        return _png16(file, _PNG_CHANNELS[start[25]], interlaced=start[28] == 1)
    return _pillow(_READERS[kind](file, ""), kind, file)


def _check_size(header: Header) -> None:
    if header.width < 1 or header.height < 1:
        raise UnusableImage(f"has no pixels (height {header.height}, width {header.width})")
    if header.width * header.height > MAX_PIXELS:
        raise UnusableImage(
            f"has {header.height:,} x {header.width:,} pixels, more than {MAX_PIXELS:,} in all; "
            "cut or shrink it first"
        )


def _pillow(image: ImageFile.ImageFile, kind: str, file: IO[bytes]) -> _Opened:
    mode = image.mode
    bits = 16 if mode.startswith("I;16") or (mode, kind) == ("I", "PPM") else 8
    if bits == 8 and mode not in _CHANNELS:
        raise _unsupported({"I": "signed or 32-bit", "F": "float"}.get(mode, mode))
    if kind == "PPM" and mode == "RGB" and _largest(image) > 255:
        raise UnusableImage("is a colour PPM of 16 bits, which is not read; save it as PNG or TIFF")
    channels = 1 if bits == 16 else _CHANNELS[mode]
    channels += "transparency" in image.info and channels in (1, 3)
    # Pillow turns TIFF itself, and has exchanged width and height already.
    orientation = 1 if kind == "TIFF" else _orientation(image)
    header = _header(image.size, channels, bits, kind, mode, orientation)

    def pixels() -> Tensor:
        decoded = _fast_jpeg(_all_of(file)) if kind == "JPEG" and mode in ("L", "RGB") else None
        if decoded is None:
            _load(image)
            wanted = image.mode if bits == 16 else _MODES[channels]
            decoded = _tensor(np.array(image if image.mode == wanted else image.convert(wanted)))
        return _upright(decoded, orientation)

    return header, pixels


def _largest(image: ImageFile.ImageFile) -> int:
    """The number that stands for the brightest level of a PPM."""
    options = image.tile[0].args
    return int(options[1]) if isinstance(options, tuple) else 255


def _plain_jpeg(file: IO[bytes]) -> Tensor | None:
    """Decode most JPEGs without Pillow, which takes long for their header; None for others.

    Others have an orientation (EXIF), a colour space of Adobe's, or something wrong.
    """
    decoded = None
    with contextlib.suppress(OSError):
        if file.read(3) == b"\xff\xd8\xff":
            file.seek(0)
            data = file.read()
            shape = _plain_shape(data)
            if shape is not None and 0 < shape[1] * shape[2] <= MAX_PIXELS:
                decoded = _fast_jpeg(data)
                if decoded is not None and decoded.shape != shape:
                    decoded = None
        file.seek(0)
    return decoded


def _plain_shape(data: bytes) -> tuple[int, int, int] | None:
    """Channels, height and width by the frame's marker (ITU-T T.81, B.2.2)."""
    place = 2
    while place + 9 < len(data):
        marker = data[place + 1]
        if data[place] != 0xFF or marker in _NOT_PLAIN or not 0xC0 <= marker <= 0xFE:
            return None
        if marker in (0xC0, 0xC1, 0xC2):
            bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 4)
            return (channels, height, width) if bits == 8 and channels in (1, 3) else None
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def _all_of(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _fast_jpeg(data: bytes) -> Tensor | None:
    """What Pillow gives, sooner. None where Pillow is to try, or to say what is wrong."""
    try:
        from torchvision.io import decode_jpeg
    except ImportError:  # torchvision 0.29 announces its removal
        return None
    try:
        decoded: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except (RuntimeError, DeprecationWarning):
        return None
    return decoded


def _load(image: ImageFile.ImageFile) -> None:
    if image.width * image.height <= (Image.MAX_IMAGE_PIXELS or MAX_PIXELS):
        image.load()
        return
    with _warnings_lock, warnings.catch_warnings():  # the filters are those of all threads
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image.load()


def _png16(file: IO[bytes], channels: int, interlaced: bool) -> _Opened:
    image = PngImageFile(file, "")
    width, height = image.size
    key = image.info.get("transparency") if channels in (1, 3) else None
    orientation = _orientation(image)
    mode = f"{_MODES[channels]};16"
    header = _header(image.size, channels + (key is not None), 16, "PNG", mode, orientation)

    def pixels() -> Tensor:
        array = read_png16(file, width, height, channels, interlaced)
        if key is not None:
            seen = (array != np.array(key)).any(2, keepdims=True)
            array = np.concatenate([array, seen * np.uint16(65535)], 2)
        return _upright(_tensor(array), orientation)

    return header, pixels


def _tiff(file: IO[bytes]) -> _Opened:
    try:
        image = TiffImageFile(file, "")
    except Exception:  # Pillow knows no mode for it, as for most numbers of channels
        return _tiff_samples(file)
    tags = image.tag_v2
    bits, samples = max(tags.get(258, (1,))), tags.get(277, 1)
    if samples > 4 or (samples > 1 and bits > 8):  # Pillow drops channels and lower bytes
        return _tiff_samples(file)
    if bits == 12:
        raise _unsupported("12-bit")
    header, pixels = _pillow(image, "TIFF", file)
    header = replace(header, rotated=tags.get(274, 1) in range(2, 9))
    if header.bits == 16 and tags.get(262) == 0:  # white is 0, which Pillow heeds for 8 bits only
        return header, lambda: (65535 - pixels().int()).to(torch.uint16)
    return header, pixels


def _tiff_samples(file: IO[bytes]) -> _Opened:
    """TIFF as its samples are stored, for 16 bits and any number of channels."""
    try:
        import tifffile
    except ImportError as error:
        raise UnusableImage("is a TIFF that needs tifffile; pip install tifffile") from error
    file.seek(0)
    page: Any = tifffile.TiffFile(file).pages[0]
    if page.dtype not in (np.uint8, np.uint16):
        raise _unsupported(str(page.dtype))
    if page.photometric not in (1, 2) or page.axes not in ("YX", "YXS", "SYX"):
        raise UnusableImage(
            f"is a TIFF of kind {getattr(page.photometric, 'name', page.photometric)} and axes "
            f"{page.axes} with {page.bitspersample} bits; save it as gray, RGB or with axes YXS"
        )
    tag = page.tags.get(_ORIENTATION)
    orientation = tag.value if tag is not None and tag.value in range(1, 9) else 1
    size = int(page.imagewidth), int(page.imagelength)
    bits = page.dtype.itemsize * 8
    header = _header(size, page.samplesperpixel, bits, "TIFF", str(page.dtype), orientation)
    first = page.axes == "SYX"
    return header, lambda: _upright(_tensor(page.asarray(maxworkers=1), first), orientation)


def _numpy(file: IO[bytes]) -> _Opened:
    major, _ = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise UnusableImage("holds pickled Python objects, which are never loaded")
    if dtype.kind != "u" or dtype.itemsize > 2:
        raise _unsupported(str(dtype))
    if len(shape) not in (2, 3):
        raise UnusableImage(f"has the shape {shape}, expected (H, W), (H, W, C) or (C, H, W)")
    first = len(shape) == 3 and shape[0] < shape[2]
    channels, height, width = shape if first else ((*shape, 1)[2], *shape[:2])

    def pixels() -> Tensor:
        file.seek(0)
        return _tensor(np.load(file, allow_pickle=False), first)

    bits = dtype.itemsize * 8
    return Header(width, height, channels, bits, "NPY", dtype.name, rotated=False), pixels


def _header(
    size: tuple[int, int], channels: int, bits: int, kind: str, mode: str, orientation: int
) -> Header:
    width, height = size[::-1] if orientation > 4 else size
    return Header(width, height, channels, bits, kind, mode, orientation > 1)


def _orientation(image: Image.Image) -> int:
    try:
        # The base's method: PNG's own decodes all pixels, to see what may stand behind them.
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # broken metadata does not make pixels unusable
        return 1
    return value if value in range(1, 9) else 1


def _upright(image: Tensor, orientation: int) -> Tensor:
    if orientation > 4:
        image = image.transpose(1, 2)
    return image.flip(_FLIPS[orientation]) if orientation in _FLIPS else image


def _tensor(array: np.ndarray[Any, Any], channels_first: bool = False) -> Tensor:
    """``(H, W)`` or ``(H, W, C)`` as ``(C, H, W)``, the memory as it is."""
    kind = np.uint8 if array.dtype.itemsize == 1 else np.uint16
    tensor = torch.from_numpy(array.astype(kind, copy=False))
    if tensor.ndim == 2:
        return tensor[None]
    return tensor if channels_first else tensor.permute(2, 0, 1)
