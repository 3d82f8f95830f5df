"""Files of every format become the pixels that Pillow, or who wrote them, says they have."""

import io
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, ImageFile, ImageOps
from sklearn.datasets import load_sample_image

from imgsynth.data.decode import SUFFIXES, UnusableImage, decode, read_header

RNG = np.random.default_rng(3)
PHOTO = Image.fromarray(load_sample_image("china.jpg")[100:147, 200:261])
TRANSLUCENT = PHOTO.copy()
TRANSLUCENT.putalpha(ImageOps.invert(PHOTO.convert("L")))
SMALL = PHOTO.resize((9, 7))
NOISE16 = RNG.integers(0, 65536, (7, 9, 4), dtype=np.uint16)
HALF_ALIKE = NOISE16[..., :3].copy()
HALF_ALIKE[..., 0] = 300  # colours that share a part with the transparent one
NOISE8 = RNG.integers(0, 256, (7, 9, 6), dtype=np.uint8)
ORIENTATION = 274

Array = np.ndarray[Any, Any]


def pixels_of(path: Path) -> Array:
    """What is decoded, ``(H, W, C)``."""
    return decode(path).permute(1, 2, 0).numpy()


def with_pillow(mode: str, kind: str, **options: Any) -> Callable[[Path], Array]:
    """A writer of a file, which returns the pixels as 8-bit gray, gray and alpha, RGB or RGBA."""

    def write(path: Path) -> Array:
        image = TRANSLUCENT if mode in ("LA", "RGBA") else PHOTO
        image = image.quantize(16) if mode == "P" else image.convert(mode)
        image.save(path, kind, **options)
        with Image.open(path) as saved:
            expected = {"1": "L", "CMYK": "RGB", "YCbCr": "RGB", "P": "RGB"}.get(mode, mode)
            if "transparency" in options:
                expected = "LA" if expected == "L" else "RGBA"
            array = np.array(saved.convert(expected))
        return array[..., None] if array.ndim == 2 else array

    return write


def as_tiff(pixels: Array, **options: Any) -> Callable[[Path], Array]:
    """A writer of a TIFF file; ``pixels`` are ``(H, W, C)``."""

    def write(path: Path) -> Array:
        planes = options.get("planarconfig") == "separate"
        tifffile.imwrite(path, pixels.transpose(2, 0, 1) if planes else pixels, **options)
        return pixels

    return write


def as_npy(array: Array, expected: Array) -> Callable[[Path], Array]:
    def write(path: Path) -> Array:
        with path.open("wb") as file:
            np.save(file, array)
        return expected

    return write


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def filtered(rows: Array, bytes_per_pixel: int) -> bytes:
    """PNG's filters of rows of bytes, all five by turns."""
    lines = []
    above = np.zeros_like(rows[0]).astype(int)
    for number, row in enumerate(rows.astype(int)):
        shifted = [
            np.concatenate([np.zeros(bytes_per_pixel, int), r])[: len(row)] for r in (row, above)
        ]
        left, corner = shifted
        estimate = left + above - corner
        distances = np.stack([abs(estimate - other) for other in (left, above, corner)])
        paeth = np.choose(distances.argmin(0), [left, above, corner])
        guesses = [np.zeros_like(row), left, above, (left + above) // 2, paeth]
        lines.append(
            bytes([number % 5]) + ((row - guesses[number % 5]) % 256).astype(np.uint8).tobytes()
        )
        above = row
    return b"".join(lines)


def png16(
    pixels: Array, interlaced: bool = False, transparent: Array | None = None, spoil: int = 0
) -> bytes:
    """A PNG file with 16 bits a channel, written from the specification."""
    height, width, channels = pixels.shape
    steps = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    parts = [pixels[y::dy, x::dx] for y, x, dy, dx in [*steps, (1, 0, 2, 1)]]
    data = bytearray(
        b"".join(
            filtered(
                np.frombuffer(part.astype(">u2").tobytes(), np.uint8).reshape(len(part), -1),
                2 * channels,
            )
            for part in (parts if interlaced else [pixels])
            if part.size
        )
    )
    packed = bytearray(zlib.compress(bytes(data)))
    packed[-1] ^= spoil
    colour = {1: 0, 3: 2, 2: 4, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, interlaced)
    key = b"" if transparent is None else png_chunk(b"tRNS", transparent.astype(">u2").tobytes())
    half = len(packed) // 2
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            key,
            png_chunk(b"IDAT", bytes(packed[:half])),
            png_chunk(b"IDAT", bytes(packed[half:])),
            png_chunk(b"IEND", b""),
        ]
    )


def as_png16(
    pixels: Array, interlaced: bool = False, hidden: bool = False
) -> Callable[[Path], Array]:
    def write(path: Path) -> Array:
        path.write_bytes(png16(pixels, interlaced, pixels[2, 3] if hidden else None))
        if not hidden:
            return pixels
        alpha = np.where((pixels == pixels[2, 3]).all(-1, keepdims=True), 0, 65535)
        return np.concatenate([pixels, alpha.astype(np.uint16)], -1)

    return write


def as_lab_tiff(path: Path) -> Array:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(PHOTO, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert lab is not None
    lab.save(path, "TIFF")
    return np.array(lab.convert("RGB"))


def as_pgm16(path: Path) -> Array:
    gray = NOISE16[..., :1]
    path.write_bytes(b"P5 9 7 65535\n" + gray.astype(">u2").tobytes())
    return gray


def as_white_is_zero_tiff(path: Path) -> Array:
    tifffile.imwrite(path, NOISE16[..., 0], photometric="miniswhite")
    return 65535 - NOISE16[..., :1]


def as_white_is_zero_tiff8(path: Path) -> Array:
    tifffile.imwrite(path, NOISE8[..., 0], photometric="miniswhite")
    return 255 - NOISE8[..., :1]


def as_pages(path: Path) -> Array:
    tifffile.imwrite(path, NOISE8.transpose(2, 0, 1), photometric="minisblack")
    return NOISE8[..., :1]


def as_animation(kind: str) -> Callable[[Path], Array]:
    def write(path: Path) -> Array:
        PHOTO.save(path, kind, save_all=True, append_images=[ImageOps.invert(PHOTO)], lossless=True)
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))

    return write


FILES: dict[str, Callable[[Path], Array]] = {
    "rgb.jpg": with_pillow("RGB", "JPEG"),
    "gray.jpeg": with_pillow("L", "JPEG"),
    "progressive.jpg": with_pillow("RGB", "JPEG", progressive=True),
    "cmyk.jpg": with_pillow("CMYK", "JPEG"),
    "bits1.png": with_pillow("1", "PNG"),
    "gray.png": with_pillow("L", "PNG"),
    "gray_alpha.png": with_pillow("LA", "PNG"),
    "palette.png": with_pillow("P", "PNG"),
    "rgb.png": with_pillow("RGB", "PNG"),
    "rgba.png": with_pillow("RGBA", "PNG"),
    "bits1_transparent.png": with_pillow("1", "PNG", transparency=0),
    "gray_transparent.png": with_pillow(
        "L", "PNG", transparency=int(np.array(PHOTO.convert("L"))[3, 4])
    ),
    "palette_transparent.png": with_pillow("P", "PNG", transparency=7),
    "palette_alpha.png": with_pillow("P", "PNG", transparency=bytes(range(0, 240, 15))),
    "rgb_transparent.png": with_pillow("RGB", "PNG", transparency=PHOTO.getpixel((4, 3))),
    "gray16.png": as_png16(NOISE16[..., :1]),
    "gray16_alpha.png": as_png16(NOISE16[..., :2]),
    "rgb16.png": as_png16(NOISE16[..., :3]),
    "rgba16.png": as_png16(NOISE16),
    "rgb16_interlaced.png": as_png16(NOISE16[..., :3], interlaced=True),
    "narrow16_interlaced.png": as_png16(NOISE16[:, :1], interlaced=True),
    "gray16_transparent.png": as_png16(NOISE16[..., :1], hidden=True),
    "rgb16_transparent.png": as_png16(HALF_ALIKE, hidden=True),
    "bits1.bmp": with_pillow("1", "BMP"),
    "palette.bmp": with_pillow("P", "BMP"),
    "rgb.bmp": with_pillow("RGB", "BMP"),
    "palette.gif": with_pillow("P", "GIF"),
    "transparent.gif": with_pillow("P", "GIF", transparency=7),
    "animation.gif": as_animation("GIF"),
    "rgb.webp": with_pillow("RGB", "WEBP"),
    "rgba.webp": with_pillow("RGBA", "WEBP", lossless=True),
    "animation.webp": as_animation("WEBP"),
    "bits1.pbm": with_pillow("1", "PPM"),
    "gray.pgm": with_pillow("L", "PPM"),
    "gray16.pgm": as_pgm16,
    "rgb.ppm": with_pillow("RGB", "PPM"),
    "bits1.tif": with_pillow("1", "TIFF", compression="group4"),
    "gray.tif": with_pillow("L", "TIFF", compression="tiff_lzw"),
    "gray_alpha.tif": with_pillow("LA", "TIFF"),
    "palette.tif": with_pillow("P", "TIFF"),
    "rgb.tiff": with_pillow("RGB", "TIFF", compression="tiff_deflate"),
    "jpeg.tiff": with_pillow("RGB", "TIFF", compression="jpeg"),
    "rgba.tif": with_pillow("RGBA", "TIFF"),
    "cmyk.tif": with_pillow("CMYK", "TIFF"),
    "ycbcr.tif": with_pillow("YCbCr", "TIFF"),
    "lab.tif": as_lab_tiff,
    "pages.tif": as_pages,
    "gray16.tif": as_tiff(NOISE16[..., :1], photometric="minisblack"),
    "gray16_big.tif": as_tiff(NOISE16[..., :1], photometric="minisblack", byteorder=">"),
    "gray16_white_is_zero.tif": as_white_is_zero_tiff,
    "gray_white_is_zero.tif": as_white_is_zero_tiff8,
    "rgb16.tif": as_tiff(NOISE16[..., :3], photometric="rgb"),
    "rgb16_big.tif": as_tiff(NOISE16[..., :3], photometric="rgb", byteorder=">"),
    "rgb16_planes.tif": as_tiff(NOISE16[..., :3], photometric="rgb", planarconfig="separate"),
    "rgba16.tif": as_tiff(NOISE16, photometric="rgb", compression="zlib"),
    "channels6.tif": as_tiff(NOISE8, photometric="minisblack", planarconfig="contig"),
    "channels6_planes.tif": as_tiff(NOISE8, photometric="minisblack", planarconfig="separate"),
    "channels5_of_rgb.tif": as_tiff(NOISE8[..., :5], photometric="rgb"),
    "gray.npy": as_npy(NOISE8[..., 0], NOISE8[..., :1]),
    "last.npy": as_npy(NOISE8, NOISE8),
    "first.npy": as_npy(NOISE8.transpose(2, 0, 1), NOISE8),
    "one_first.npy": as_npy(NOISE8[None, ..., 0], NOISE8[..., :1]),
    "square.npy": as_npy(NOISE8[:6], NOISE8[:6]),
    "big16.npy": as_npy(NOISE16.astype(">u2"), NOISE16),
    "fortran.npy": as_npy(np.asfortranarray(NOISE8), NOISE8),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_its_pixels_and_announces_them(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    expected = FILES[name](path)
    found = pixels_of(path)
    assert found.dtype == expected.dtype.newbyteorder("=")
    assert np.array_equal(found, expected)
    header = read_header(str(path))
    assert (header.height, header.width, header.channels) == expected.shape
    assert header.bits == 8 * expected.itemsize
    assert not header.rotated


def test_every_suffix_that_is_taken_for_an_image_is_tried_above() -> None:
    assert {Path(name).suffix for name in FILES} == SUFFIXES


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "x.jpg", "PNG")
    assert read_header(tmp_path / "x.jpg").format == "PNG"
    assert np.array_equal(pixels_of(tmp_path / "x.jpg"), np.array(PHOTO))


@pytest.mark.parametrize("quality", [20, 75, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(61, 47), (1, 1), (16, 33)])
def test_jpeg_pixels_are_those_of_pillow(
    quality: int, subsampling: int, size: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "x.jpg"
    PHOTO.resize(size).save(path, quality=quality, subsampling=subsampling)
    with Image.open(path) as image:
        assert np.array_equal(pixels_of(path), np.array(image))


def test_jpeg_is_read_by_torchvision_where_there_is_its_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jpg"
    PHOTO.save(path)
    expected = pixels_of(path)
    marked = torch.full((3, 47, 61), 5, dtype=torch.uint8)
    given: list[bytes] = []

    def decode_jpeg(data: torch.Tensor) -> torch.Tensor:
        given.append(data.numpy().tobytes())
        return marked

    with monkeypatch.context() as patch:
        patch.setattr("torchvision.io.decode_jpeg", decode_jpeg)
        assert decode(path) is marked
    assert given == [path.read_bytes()]
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    assert np.array_equal(pixels_of(path), expected)


def test_jpeg_that_torchvision_does_not_read_is_left_to_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("cannot")

    path = tmp_path / "x.jpg"
    PHOTO.save(path)
    expected = pixels_of(path)
    monkeypatch.setattr("torchvision.io.decode_jpeg", refuse)
    assert np.array_equal(pixels_of(path), expected)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 8), (13, 11)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_is_what_torchvision_reads(
    channels: int, shape: tuple[int, int], interlaced: bool, tmp_path: Path
) -> None:
    from torchvision.io import decode_png

    pixels = RNG.integers(0, 65536, (*shape, channels), dtype=np.uint16)
    data = png16(pixels, interlaced)
    (tmp_path / "x.png").write_bytes(data)
    found = decode(tmp_path / "x.png")
    assert torch.equal(found, decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8)))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_images_are_turned_upright_as_by_pillow(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    path = tmp_path / f"x.{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    PHOTO.save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(pixels_of(path), expected)
    header = read_header(path)
    assert (header.height, header.width) == expected.shape[:2]
    assert header.rotated == (orientation in range(2, 9))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_images_of_16_bits_are_turned_upright_too(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    path = tmp_path / f"x.{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.array(SMALL)
    turned = SMALL.copy()
    turned.getexif()[ORIENTATION] = orientation
    expected = np.array(ImageOps.exif_transpose(turned)).astype(np.uint16) * 257
    if suffix == "tif":
        tags = [(ORIENTATION, 3, 1, orientation, True)]
        tifffile.imwrite(path, stored.astype(np.uint16) * 257, photometric="rgb", extratags=tags)
    else:
        data = png16(stored.astype(np.uint16) * 257)
        path.write_bytes(data[:33] + png_chunk(b"eXIf", exif.tobytes()[6:]) + data[33:])
    assert np.array_equal(pixels_of(path), expected)
    header = read_header(path)
    assert (header.height, header.width) == expected.shape[:2]
    assert header.rotated == (orientation in range(2, 9))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("exif", [b"Exif\0\0no exif at all", b"Exif\0\0II*\0"])
def test_broken_exif_leaves_the_image_as_it_is(exif: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    PHOTO.save(path, exif=exif)
    with Image.open(path) as image:
        assert np.array_equal(pixels_of(path), np.array(image))
    assert not read_header(path).rotated


@pytest.mark.parametrize("name", FILES)
def test_a_header_is_read_without_decoding(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FILES[name](tmp_path / name)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda page: pytest.fail("decoded"))
    assert read_header(tmp_path / name).height in (7, 9, 6, 47)


def test_a_header_is_read_where_the_pixels_are_missing(tmp_path: Path) -> None:
    for suffix in ("jpg", "png", "bmp", "tif", "ppm"):
        path = tmp_path / f"x.{suffix}"
        PHOTO.save(path)
        path.write_bytes(path.read_bytes()[:800])
        assert (read_header(path).width, read_header(path).height) == (61, 47)
        with pytest.raises(UnusableImage, match=r"^cannot be read as [A-Z]+: ."):
            decode(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif", "ppm"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_unusable(suffix: str, part: float, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    PHOTO.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(UnusableImage, match=r"^cannot be read as [A-Z]+: .") as caught:
        decode(path)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", ["rgb16.png", "rgb16.tif", "channels6.tif", "last.npy"])
def test_a_truncated_file_is_unusable_whoever_reads_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    FILES[name](path)
    data = path.read_bytes()
    for length in (30, len(data) // 2, len(data) - 60):
        path.write_bytes(data[:length])
        with pytest.raises(UnusableImage, match=r"^cannot be read as [A-Z]+: ."):
            decode(path)


def test_a_broken_png_of_16_bits_is_unusable(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    data = bytearray(png16(NOISE16))
    data[len(data) // 3] ^= 255
    path.write_bytes(data)
    with pytest.raises(UnusableImage, match="cannot be read as PNG: the checksum"):
        decode(path)
    path.write_bytes(png16(NOISE16, spoil=255))  # the checksum of the compressed data
    with pytest.raises(UnusableImage, match=r"cannot be read as PNG: .*incorrect data check"):
        decode(path)
    path.write_bytes(png16(NOISE16)[:33] + png16(NOISE16[:-1])[33:])  # the last row is missing
    with pytest.raises(UnusableImage, match="as PNG: its pixels take 511 bytes, it has 438"):
        decode(path)


def test_files_that_are_no_images_are_unusable(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for content, message in {
        b"": r"^is empty \(0 bytes\)$",
        b"hello": "^is not JPEG, PNG, BMP, GIF, WebP, TIFF, PPM or NPY$",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "^is not JPEG",
        b"\x89PNG\r\n\x1a\n": "^cannot be read as PNG: ",
        b"\xff\xd8\xff\xe0": "^cannot be read as JPEG: ",
        b"II*\0": "^cannot be read as TIFF: ",
        b"\x93NUMPY\x01\x00": "^cannot be read as NPY: ",
        b"\x93NUMPY\x01\x00\x08\x00{'a': ((": "^cannot be read as NPY: ",
    }.items():
        path.write_bytes(content)
        for read in (read_header, decode):
            with pytest.raises(UnusableImage, match=message):
                read(path)


def test_what_cannot_be_opened_is_unusable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnusableImage, match=r"^is a folder$"):
        decode(tmp_path)
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UnusableImage, match=r"^cannot be opened: No such file or directory$"):
        decode(tmp_path / "link.png")

    def forbid(*args: Any) -> None:
        raise PermissionError(13, "Permission denied", "secret.png")

    monkeypatch.setattr(Path, "open", forbid)
    with pytest.raises(UnusableImage, match=r"^cannot be opened: Permission denied$"):
        read_header("x.png")


@pytest.mark.parametrize("suffix", ["tif", "npy"])
@pytest.mark.parametrize("dtype", ["int32", "float32", "int16", "uint32", "float64"])
def test_other_numbers_are_refused_with_what_to_do(suffix: str, dtype: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    for array in (np.ones((7, 9), dtype), np.ones((7, 9, 5), dtype)):
        np.save(path, array) if suffix == "npy" else tifffile.imwrite(path, array)
        with pytest.raises(UnusableImage, match=r"expected unsigned ones of 8 or 16 bits; scale"):
            read_header(path)


def test_kinds_that_nothing_reads_whole_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"P6 2 1 65535\n" + bytes(12))
    with pytest.raises(UnusableImage, match=r"is a colour PPM of 16 bits, .* save it as PNG"):
        read_header(path)
    tifffile.imwrite(path, NOISE16, photometric="separated")
    with pytest.raises(UnusableImage, match=r"TIFF of kind SEPARATED .* with 16 bits; save it as"):
        read_header(path)
    PHOTO.convert("L").save(path, "TIFF")
    data = path.read_bytes().replace(
        struct.pack("<HHIH", 258, 3, 1, 8), struct.pack("<HHIH", 258, 3, 1, 12)
    )
    path.write_bytes(data)
    with pytest.raises(UnusableImage, match="has 12-bit pixels"):
        read_header(path)


def test_pickled_objects_are_refused_and_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    objects = np.array([[None, 1], [2, 3]], dtype=object)
    np.save(path, objects, allow_pickle=True)
    with pytest.raises(UnusableImage, match="holds pickled Python objects, which are never loaded"):
        decode(path)
    path.write_bytes(objects.dumps())
    with pytest.raises(UnusableImage, match="is not JPEG"):
        decode(path)


@pytest.mark.parametrize("shape", [(5,), (2, 5, 5, 3), ()])
def test_arrays_that_are_no_image_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UnusableImage, match=r"has the shape \(.*expected \(H, W\), \(H, W, C\) or"):
        decode(tmp_path / "x.npy")


def test_images_without_pixels_are_unusable(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((0, 40), np.uint8))
    with pytest.raises(UnusableImage, match=r"has no pixels \(height 0, width 40\)"):
        read_header(tmp_path / "x.npy")
    (tmp_path / "x.ppm").write_bytes(b"P5 0 4 255\n")
    with pytest.raises(UnusableImage, match="cannot be read as PPM"):
        read_header(tmp_path / "x.ppm")


@pytest.mark.parametrize("bits", [8, 16])
def test_too_many_pixels_are_refused_before_they_are_decoded(bits: int, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    header = struct.pack(">IIBBBBB", 20_000, 10_000, bits, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b""))
    for read in (read_header, decode):
        with pytest.raises(UnusableImage, match="10,000 x 20,000 pixels, more than 178,956,970"):
            read(path)
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (178_956_971, 1))
    with pytest.raises(UnusableImage, match="178,956,971 x 1 pixels, more than"):
        decode(tmp_path / "x.npy")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif", "ppm"])
def test_large_images_are_decoded_without_a_warning(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"x.{suffix}"
    PHOTO.save(path)
    expected = pixels_of(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # of 2867
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(path).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        assert read_header(path).width == 61
        assert np.array_equal(pixels_of(path), expected)


def test_an_image_of_60_megapixels_is_decoded(tmp_path: Path) -> None:
    image = Image.new("1", (10_000, 6_000))
    image.putpixel((9_999, 5_999), 1)
    image.save(tmp_path / "x.png")
    found = decode(tmp_path / "x.png")
    assert found.shape == (1, 6_000, 10_000)
    assert int(found[0, -1, -1]) == 255
    assert int(found[0, -1, -2]) == 0


def test_threads_decode_the_same_as_one(tmp_path: Path) -> None:
    paths = []
    for name, write in FILES.items():
        write(tmp_path / name)
        paths.append(tmp_path / name)
    alone = [decode(path) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        for found in (list(pool.map(decode, paths)) for _ in range(3)):
            assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


def test_without_tifffile_its_files_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FILES["rgb.tiff"](tmp_path / "rgb.tif")
    FILES["rgb16.tif"](tmp_path / "rgb16.tif")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert read_header(tmp_path / "rgb.tif").bits == 8
    with pytest.raises(UnusableImage, match="needs tifffile; pip install tifffile"):
        read_header(tmp_path / "rgb16.tif")


def test_a_compression_that_needs_another_package_names_it(tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "x.tif", compression="tiff_lzw")
    data = io.BytesIO()
    tifffile.imwrite(data, NOISE16[..., :3], photometric="rgb", compression="zlib")
    raw = data.getvalue().replace(
        struct.pack("<HHIH", 259, 3, 1, 8), struct.pack("<HHIH", 259, 3, 1, 5)
    )
    (tmp_path / "x.tif").write_bytes(raw)
    with pytest.raises(UnusableImage, match="requires the 'imagecodecs' package"):
        decode(tmp_path / "x.tif")


def test_pixels_unlike_the_header_are_unusable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PHOTO.save(tmp_path / "x.jpg")
    monkeypatch.setattr("torchvision.io.decode_jpeg", lambda data: torch.zeros(1, 2, 3))
    with pytest.raises(UnusableImage, match=r"has pixels of shape \(1, 2, 3\), unlike its Header"):
        decode(tmp_path / "x.jpg")


def test_lack_of_memory_is_not_the_fault_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(data: torch.Tensor) -> torch.Tensor:
        raise MemoryError

    PHOTO.save(tmp_path / "x.jpg")
    monkeypatch.setattr("torchvision.io.decode_jpeg", fail)
    with pytest.raises(MemoryError):
        decode(tmp_path / "x.jpg")
