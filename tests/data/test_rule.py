"""Images of all sizes and kinds become alike, as torchvision, Pillow and plain sums say."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms import v2

from imgsynth.data.decode import UnusableImage
from imgsynth.data.rule import Rule

PHOTO = torch.from_numpy(load_sample_image("china.jpg")[:200, 100:341].copy()).permute(2, 0, 1)
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def noise(*shape: int, bits: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randint(0, 2**bits, shape, generator=generator)
    return values.to(torch.uint8 if bits == 8 else torch.uint16)


def as_pillow(image: Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if len(image) == 1 else array, MODES[len(image)])


def from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)


def differ(first: Tensor, second: Tensor) -> float:
    """The largest difference of two images' levels."""
    assert first.shape == second.shape
    return (first.double() - second.double()).abs().max().item()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "side"),
    [
        (375, 500, 256),
        (500, 333, 64),
        (17, 31, 8),
        (31, 17, 40),
        (9, 9, 5),
        (7, 200, 3),
        (50, 3, 2),
    ],
)
@pytest.mark.parametrize("last", [False, True], ids=["planes", "interleaved"])
def test_squares_are_cropped_exactly_as_by_torchvision(
    interpolation: Any, height: int, width: int, side: int, last: bool
) -> None:
    image = noise(height, width, 3).permute(2, 0, 1) if last else noise(3, height, width)
    mode = v2.InterpolationMode(interpolation)
    resize = v2.Resize(side, interpolation=mode, antialias=True)
    expected = v2.CenterCrop(side)(resize(image))
    assert torch.equal(Rule((side, side), interpolation=interpolation).apply(image), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (40, 200), (150, 30), (199, 240)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resized_photos_are_those_of_pillow_but_for_rounding(
    interpolation: Any, size: tuple[int, int], channels: int
) -> None:
    image = PHOTO[:channels]
    found = Rule(size, fit="stretch", interpolation=interpolation).apply(image)
    method = Image.Resampling[interpolation.upper()]
    expected = from_pillow(as_pillow(image).resize(size[::-1], method))
    assert differ(found, expected) <= (1 if interpolation == "bilinear" else 2)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 1), (1, 5)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_one_pixel_wide_are_right_too(
    channels: int, size: tuple[int, int], bits: int, interpolation: Any
) -> None:
    image = noise(1, 9, 4).expand(channels, -1, -1).clone()
    if channels in (2, 4):
        image[-1] = 255
    method = Image.Resampling[interpolation.upper()]
    expected = from_pillow(as_pillow(image[:1]).resize(size[::-1], method))
    rule = Rule(size, fit="stretch", interpolation=interpolation)
    found = rule.apply(image if bits == 8 else Rule(bits=16).apply(image))
    assert differ(found[:1].double() / (1 if bits == 8 else 257), expected) <= 1
    if channels > 2:
        assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("size", "resized", "top", "left"),
    [
        ((100, 100), (100, 120), 0, 10),  # of 200x241
        ((100, 50), (100, 120), 0, 35),
        ((50, 241), (200, 241), 75, 0),
        ((60, 120), (99, 120), 20, 0),  # 19.5 to even
        ((400, 400), (400, 482), 0, 41),
    ],
)
def test_crop_covers_the_size_and_cuts_the_middle_out(
    size: tuple[int, int], resized: tuple[int, int], top: int, left: int
) -> None:
    whole = Rule(resized, fit="stretch").apply(PHOTO)
    expected = whole[:, top : top + size[0], left : left + size[1]]
    assert torch.equal(Rule(size).apply(PHOTO), expected)


@pytest.mark.parametrize(
    ("size", "resized", "top", "left"),
    [
        ((100, 100), (82, 100), 9, 0),  # of 200x241
        ((100, 200), (100, 120), 0, 40),
        ((100, 201), (100, 120), 0, 40),
        ((400, 400), (331, 400), 34, 0),
        ((200, 241), (200, 241), 0, 0),
    ],
)
def test_pad_fits_the_image_into_the_middle_of_the_background(
    size: tuple[int, int], resized: tuple[int, int], top: int, left: int
) -> None:
    expected = torch.full((3, *size), 77, dtype=torch.uint8)
    inside = Rule(resized, fit="stretch").apply(PHOTO)
    expected[:, top : top + resized[0], left : left + resized[1]] = inside
    assert torch.equal(Rule(size, fit="pad", background=77).apply(PHOTO), expected)


def test_very_long_images_keep_at_least_one_pixel() -> None:
    padded = Rule((4, 4), fit="pad", background=0).apply(torch.full((1, 1, 99), 9).to(torch.uint8))
    assert padded[0].tolist() == [[0] * 4, [9] * 4, [0] * 4, [0] * 4]
    padded = Rule((4, 4), fit="pad", background=0).apply(torch.full((1, 99, 1), 9).to(torch.uint8))
    assert padded[0, 0].tolist() == [0, 9, 0, 0]


def test_padding_is_opaque_and_as_bright_in_16_bits() -> None:
    image = noise(4, 2, 4, bits=16)
    padded = Rule((4, 4), fit="pad", background=10).apply(image)
    assert padded[:, 0, 0].tolist() == [2570, 2570, 2570, 65535]
    assert torch.equal(padded[:, 1:3], image)


def test_stretch_ignores_the_shape() -> None:
    image = noise(3, 20, 30)
    resize = v2.Resize((7, 40), antialias=True)
    assert torch.equal(Rule((7, 40), fit="stretch").apply(image), resize(image))


def test_cut_takes_the_middle_as_it_is() -> None:
    image = noise(3, 10, 13)
    expected = v2.CenterCrop((4, 6))(image)
    assert torch.equal(Rule((4, 6), fit="cut").apply(image), expected)
    assert torch.equal(Rule((10, 13), fit="cut").apply(image), image)


@pytest.mark.parametrize("shape", [(40, 60), (90, 60), (60, 90)])
def test_cut_refuses_smaller_images(shape: tuple[int, int]) -> None:
    rule = Rule((64, 64), fit="cut")
    message = f"^is {shape[0]}x{shape[1]} pixels, smaller than the 64x64 to cut$"
    with pytest.raises(UnusableImage, match=message):
        rule.apply(noise(3, *shape))
    with pytest.raises(UnusableImage, match=message):
        rule.kept(*shape)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch", "cut"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_an_image_of_the_right_size_and_kind_is_left_alone(
    channels: int, fit: Any, bits: int
) -> None:
    image = noise(6, 8, channels, bits=bits).permute(2, 0, 1)
    image[-1, 0, 0] = 0
    for rule in (Rule((6, 8), fit=fit), Rule(channels=channels, bits=8 if bits == 8 else 16)):
        found = rule.apply(image)
        assert torch.equal(found, image)
        assert found.dtype == image.dtype
        assert found.is_contiguous()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_16_bits_are_resized_in_16_bits(interpolation: Any) -> None:
    image = noise(3, 30, 40, bits=16)
    rule = Rule((20, 20), fit="stretch", interpolation=interpolation)
    exact = torch.nn.functional.interpolate(
        image[None].double(), (20, 20), mode=interpolation, antialias=True
    )[0]
    found = rule.apply(image)
    assert found.dtype == torch.uint16
    assert differ(found, exact.clamp(0, 65535)) <= 0.51  # rounded


def test_overshoot_of_bicubic_is_clamped_in_16_bits() -> None:
    image = torch.zeros(1, 4, 16, dtype=torch.int32)
    image[..., 8:] = 65535
    found = Rule((4, 40), fit="stretch", interpolation="bicubic").apply(image.to(torch.uint16))
    row = found[0, 0].int()
    assert row.diff().min() >= 0  # 65536 would begin at 0 again
    assert row[[0, 18, 21, -1]].tolist() == [0, 0, 65535, 65535]


def test_16_bits_become_8_by_rounding_and_come_back() -> None:
    every = torch.arange(65536).to(torch.uint16).view(1, 256, 256)
    found = Rule(bits=8).apply(every)
    expected = [round(Fraction(value, 257)) for value in range(65536)]
    assert found.dtype == torch.uint8
    assert found.flatten().tolist() == expected
    wide = Rule(bits=16).apply(found)
    assert wide.dtype == torch.uint16
    assert torch.equal(wide.int(), found.int() * 257)


def test_bits_are_dropped_after_resizing() -> None:
    image = noise(1, 64, 64, bits=16)
    found = Rule((5, 5), bits=8).apply(image)
    exact = torch.nn.functional.interpolate(
        image[None].double(), (5, 5), mode="bilinear", antialias=True
    )[0]
    assert differ(found, exact / 257) <= 0.51


def test_gray_is_the_luma_of_pillow() -> None:
    image = torch.cat([noise(3, 300, 300), PHOTO[:, :, :240].reshape(3, -1, 300)], dim=1)
    assert torch.equal(Rule(channels=1).apply(image), from_pillow(as_pillow(image).convert("L")))


def test_gray_in_16_bits_has_the_same_weights() -> None:
    image = noise(3, 50, 50, bits=16)
    image[:, 0, 0] = 65535
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    expected = torch.einsum("c,chw->hw", weights, image.double())[None]
    found = Rule(channels=1).apply(image)
    assert found.dtype == torch.uint16
    assert differ(found, expected) < 1.5
    assert int(found[0, 0, 0]) == 65535


@pytest.mark.parametrize("bits", [8, 16])
def test_gray_is_repeated_and_new_alpha_is_opaque(bits: int) -> None:
    gray, rgb = noise(1, 3, 4, bits=bits), noise(3, 3, 4, bits=bits)
    opaque = torch.full_like(gray, 2**bits - 1)
    assert torch.equal(Rule(channels=3).apply(gray), torch.cat([gray] * 3))
    assert torch.equal(Rule(channels=2).apply(gray), torch.cat([gray, opaque]))
    assert torch.equal(Rule(channels=4).apply(gray), torch.cat([gray] * 3 + [opaque]))
    assert torch.equal(Rule(channels=4).apply(rgb), torch.cat([rgb, opaque]))
    luma = Rule(channels=1).apply(rgb)
    assert torch.equal(Rule(channels=2).apply(rgb), torch.cat([luma, opaque]))


def test_alpha_that_is_kept_stays_with_other_colours() -> None:
    gray_alpha, rgba = noise(2, 3, 4), noise(4, 3, 4)
    gray, alpha = gray_alpha[:1], gray_alpha[1:]
    assert torch.equal(Rule(channels=4).apply(gray_alpha), torch.cat([gray, gray, gray, alpha]))
    luma = Rule(channels=1).apply(rgba[:3])
    assert torch.equal(Rule(channels=2).apply(rgba), torch.cat([luma, rgba[3:]]))


@pytest.mark.parametrize("background", [0, 100, 255])
@pytest.mark.parametrize("channels", [2, 4])
def test_dropped_alpha_is_composited_as_by_pillow(channels: int, background: int) -> None:
    image = noise(channels, 40, 50)
    rgba = as_pillow(image).convert("RGBA")
    behind = Image.new("RGBA", rgba.size, (background, background, background, 255))
    expected = Image.alpha_composite(behind, rgba).convert("RGB")
    found = Rule(channels=3, background=background).apply(image)
    assert differ(found, from_pillow(expected)) <= 1
    if channels == 2:
        found = Rule(channels=1, background=background).apply(image)
        assert differ(found, from_pillow(expected)[:1]) <= 1


def test_alpha_of_16_bits_is_composited_exactly() -> None:
    image = noise(4, 20, 30, bits=16)
    alpha = image[3:].double() / 65535
    expected = image[:3].double() * alpha + 30 * 257 * (1 - alpha)
    found = Rule(channels=3, background=30).apply(image)
    assert found.dtype == torch.uint16
    assert differ(found, expected) <= 0.5001


@pytest.mark.parametrize("bits", [8, 16])
def test_hidden_colours_do_not_bleed_into_resized_images(bits: int) -> None:
    brightest = 2**bits - 1
    image = torch.zeros(4, 16, 16, dtype=torch.int32)
    image[0] = brightest  # red, where it is seen
    image[3, :, :7] = brightest
    image[:2, :, 7:] = torch.tensor([0, brightest])[:, None, None]  # green, where it is hidden
    image = image.to(torch.uint8 if bits == 8 else torch.uint16)
    kept = Rule((4, 4)).apply(image)
    red, green, _, alpha = kept.int()
    assert green.max() == 0
    assert (alpha > 0).any()
    assert red[alpha > 0].min() == brightest
    dropped = Rule((4, 4), channels=3, background=0).apply(image)
    assert dropped[1].int().max() == 0


@pytest.mark.parametrize("channels", [2, 4])
def test_opaque_alpha_changes_nothing(channels: int) -> None:
    colours = noise(channels - 1, 30, 40)
    image = torch.cat([colours, torch.full_like(colours[:1], 255)])
    found = Rule((9, 9)).apply(image)
    assert torch.equal(found[:-1], Rule((9, 9)).apply(colours))
    assert found[-1].min() == 255
    found = Rule((9, 9), channels=channels - 1).apply(image)
    assert torch.equal(found, Rule((9, 9)).apply(colours))


@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_that_is_kept_weights_the_colours(bits: int) -> None:
    image = noise(4, 30, 40, bits=bits)
    exact = torch.cat([image[:3].double() * image[3:].double(), image[3:].double()])
    exact = torch.nn.functional.interpolate(exact[None], (7, 9), mode="bilinear", antialias=True)[0]
    found = Rule((7, 9), fit="stretch").apply(image)
    assert differ(found[:3], exact[:3] / exact[3:]) <= 0.51
    assert differ(found[3:], exact[3:]) <= 0.51


def test_alpha_that_is_kept_is_resized_like_a_gray_image() -> None:
    image = noise(4, 30, 40)
    found = Rule((7, 9), fit="stretch").apply(image)
    assert differ(found[3:], Rule((7, 9), fit="stretch").apply(image[3:])) <= 1


@pytest.mark.parametrize(("given", "wanted"), [(5, 3), (3, 5), (1, 7), (4, 6), (6, 4)])
def test_other_numbers_of_channels_are_refused(given: int, wanted: int) -> None:
    with pytest.raises(UnusableImage, match=f"^has {given} channels, .* become {wanted}; set chan"):
        Rule(channels=wanted).apply(noise(given, 3, 4))


def test_many_channels_are_resized_like_single_ones() -> None:
    image = noise(6, 20, 30)
    found = Rule((8, 8)).apply(image)
    singly = [Rule((8, 8)).apply(channel[None]) for channel in image]
    assert differ(found, torch.cat(singly)) <= 1


@pytest.mark.parametrize("size", [(100, 100), (100, 50), (50, 300), (400, 410), (7, 3)])
@pytest.mark.parametrize("shape", [(200, 241), (90, 33), (30, 400)])
def test_the_part_that_is_kept_lies_where_the_pixels_come_from(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    # Each pixel holds its own place, so the result says which part it was cut from.
    rows = torch.linspace(0, 65535, shape[0]).round()[:, None].expand(shape)
    columns = torch.linspace(0, 65535, shape[1]).round()[None].expand(shape)
    image = torch.stack([rows, columns, rows]).to(torch.uint16)
    found = Rule(size).apply(image).double() / 65535
    top, left, height, width = Rule(size).kept(*shape)
    assert height == shape[0] or width == shape[1]
    for first, last, start, length, whole, count in (
        (found[0, 0, 0], found[0, -1, -1], top, height, shape[0], size[0]),
        (found[1, 0, 0], found[1, -1, -1], left, width, shape[1], size[1]),
    ):
        assert 0 <= start < start + length <= whole
        half = length / count / 2  # where the centres of the first and the last pixel lie
        tolerance = 1 + 0.2 * half  # at the border, antialiasing lacks one side
        assert abs(first.item() * (whole - 1) + 0.5 - (start + half)) <= tolerance
        assert abs(last.item() * (whole - 1) + 0.5 - (start + length - half)) <= tolerance


def test_the_part_that_is_kept_of_uncropped_images_is_all() -> None:
    assert Rule().kept(20, 30) == (0, 0, 20, 30)
    assert Rule((5, 5), fit="pad").kept(20, 30) == (0, 0, 20, 30)
    assert Rule((5, 5), fit="stretch").kept(20, 30) == (0, 0, 20, 30)
    assert Rule((4, 7), fit="cut").kept(20, 30) == (8, 12, 4, 7)
    assert Rule((10, 10)).kept(20, 30) == (0, 4, 20, 20)  # of 10x15, as from 2
    assert Rule((7, 3)).kept(30, 400) == (0, 194, 30, 12)  # 193.5 to 206.5
    assert Rule((1, 90)).kept(20, 30) == (10, 0, 1, 30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (0, 4)}, r"size must be \(height, width\), both at least 1, got \(0, 4\)"),
        ({"size": (4,)}, "size must be"),
        ({"size": 4}, "size must be"),
        ({"fit": "cut"}, r"fit='cut' needs a size, \(height, width\)"),
        ({"fit": "pad"}, "fit='pad' needs a size"),
        ({"size": (4, 4), "fit": "zoom"}, "fit must be one of crop, pad, stretch, cut, got 'zoom'"),
        ({"interpolation": "nearest"}, "interpolation must be bilinear or bicubic, got 'nearest'"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"bits": 12}, "bits must be 8 or 16, got 12"),
        ({"background": 256}, "background must lie between 0 and 255, got 256"),
        ({"background": -1}, "background must lie between 0 and 255, got -1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rule(**settings)
