"""The contact sheet, pixel by pixel."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgsynth.data.contact_sheet import _width, _wrapped, contact_sheet
from imgsynth.data.decode import decode
from imgsynth.data.organise import Organisation, Organiser
from imgsynth.data.rule import Rule
from imgsynth.data.scan import scan

rng = np.random.default_rng(0)
Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def _the_same_noise_whatever_ran_before() -> None:
    rng.bit_generator.state = np.random.default_rng(0).bit_generator.state


def noise(height: int = 8, width: int = 8, mode: str = "RGB") -> Image.Image:
    bands = len(mode)
    pixels = rng.integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.fromarray(pixels if bands > 1 else pixels[..., 0])


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def sheet(root: Path, rule: Rule | None = None, **options: Any) -> Array:
    listing = scan(root)
    organisation = Organiser(root)(listing.names)
    drawn = contact_sheet(listing, rule or Rule(), organisation, **options)
    assert drawn.dtype.itemsize == 1
    return drawn.permute(1, 2, 0).numpy()


def where(drawn: Array, colour: Sequence[int]) -> Array:
    return (drawn == np.array(colour)).all(-1)


def num_of(drawn: Array, colour: Sequence[int]) -> float:
    """How many thumbnails of 128x128 pixels are filled with a colour."""
    return float(where(drawn, colour).sum() / 128**2)


def reds(drawn: Array) -> list[int]:
    """The red of the thumbnails that are (red, 200, 0)."""
    there = (drawn[..., 1] == 200) & (drawn[..., 2] == 0)
    return np.unique(drawn[there][:, 0]).tolist()


def test_what_the_rule_cuts_away_is_dark_and_the_rest_has_a_line_around_it(tmp_path: Path) -> None:
    save(Image.new("RGB", (64, 32), (200, 100, 50)), tmp_path / "a.png")
    rule = Rule(size=(16, 16))
    assert rule.kept(32, 64) == (0, 16, 32, 32)
    drawn = sheet(tmp_path, rule)
    dark = where(drawn, (60, 30, 15))
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    assert (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1) == (64, 128)  # doubled
    middle = drawn[rows[32], columns[0] : columns[0] + 128]
    bright = where(middle, (200, 100, 50))
    line = where(middle, (255, 176, 0))
    assert np.flatnonzero(bright).tolist() == list(range(32, 96))
    assert np.flatnonzero(line).tolist() == [31, 96]
    assert np.flatnonzero(where(middle, (60, 30, 15))).tolist() == [*range(31), *range(97, 128)]


def test_below_each_image_is_what_becomes_of_it(tmp_path: Path) -> None:
    path = save(noise(40, 60), tmp_path / "a.png")
    rule = Rule(size=(32, 32), channels=1)
    expected = rule.apply(decode(path)).numpy()[0].repeat(2, 0).repeat(2, 1)
    drawn = sheet(tmp_path, rule)
    gray = drawn[..., 0]
    assert (drawn[-80:-16] == gray[-80:-16, :, None]).all()
    left = 16 + (128 - 64) // 2
    assert np.array_equal(gray[-80:-16, left : left + 64], expected)


def test_an_image_that_is_kept_whole_is_neither_dark_nor_framed(tmp_path: Path) -> None:
    save(Image.new("RGB", (128, 128), (200, 100, 50)), tmp_path / "a.png")
    for rule in (Rule(), Rule(size=(64, 64)), Rule(size=(64, 32), fit="pad")):
        drawn = sheet(tmp_path, rule)
        assert num_of(drawn, (200, 100, 50)) >= 1
        assert not where(drawn, (255, 176, 0)).any()
        assert not where(drawn, (60, 30, 15)).any()


def test_an_image_too_small_to_cut_is_all_dark(tmp_path: Path) -> None:
    save(Image.new("RGB", (16, 16), (200, 100, 50)), tmp_path / "a.png")
    drawn = sheet(tmp_path, Rule(size=(64, 64), fit="cut"))
    assert num_of(drawn, (60, 30, 15)) == 1
    assert not where(drawn, (200, 100, 50)).any()


def test_images_are_drawn_evenly_from_the_classes(tmp_path: Path) -> None:
    colours = {"a": (200, 0, 0), "b": (0, 200, 0), "c": (0, 0, 200)}
    for (name, colour), num in zip(colours.items(), (100, 40, 3), strict=True):
        for i in range(num):
            save(Image.new("RGB", (2, 2), colour), tmp_path / name / f"{i:03}.bmp")
    drawn = sheet(tmp_path)
    assert [num_of(drawn, colour) for colour in colours.values()] == [31, 30, 3]
    assert np.array_equal(drawn, sheet(tmp_path))


def test_of_many_classes_64_are_shown(tmp_path: Path) -> None:
    for i in range(100):
        save(Image.new("RGB", (2, 2), (i, 200, 0)), tmp_path / f"{i:03}" / "a.bmp")
    shown = reds(sheet(tmp_path))
    assert len(shown) == 64
    assert np.diff(shown).max() == 2  # from all over


def test_a_few_of_a_folder_come_from_all_over_it(tmp_path: Path) -> None:
    for i in range(128):
        save(Image.new("RGB", (2, 2), (i, 200, 0)), tmp_path / f"{i:03}.bmp")
    assert reds(sheet(tmp_path)) == list(range(1, 128, 2))


def test_broken_files_are_not_shown(tmp_path: Path) -> None:
    save(Image.new("RGB", (2, 2), (200, 0, 0)), tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    alone = sheet(tmp_path, leave_out={"b.png"})
    assert num_of(alone, (200, 0, 0)) == 1
    assert num_of(alone, (236, 236, 236)) > 1
    with pytest.raises(ValueError, match="no image to show"):
        sheet(tmp_path, leave_out={"a.png"})


def test_classes_are_written_above_their_images(tmp_path: Path) -> None:
    pictures = {}
    for names in (("ant", "bee"), ("ant", "cow"), ("Österreich", "猫" * 60)):
        root = tmp_path / "_".join(names)[:9] / "same"
        for name in names:
            save(Image.new("RGB", (2, 2), (200, 0, 0)), root / name / "a.png")
        pictures[names] = sheet(root)
    first, second, third = pictures.values()
    assert first.shape == second.shape == third.shape
    rows, columns = np.nonzero((first != second).any(-1))
    assert columns.min() >= 16 + 128 + 8  # above the second
    thumbnails = np.flatnonzero(where(first, (200, 0, 0)).any(1))
    assert rows.max() < thumbnails[0]
    assert (first != third).any()


def test_without_classes_folders_are_written_if_there_are_several(tmp_path: Path) -> None:
    save(noise(), tmp_path / "one" / "a.png")
    single = contact_sheet(scan(tmp_path), Rule())
    save(noise(), tmp_path / "two" / "a.png")
    organisation = Organisation({"train": np.arange(2)}, None, ())
    both = contact_sheet(scan(tmp_path), Rule(), organisation)
    assert both.shape[1] > single.shape[1]  # by the height of a line


def test_16_bits_alpha_and_odd_channels_can_be_shown_or_are_left_out(tmp_path: Path) -> None:
    save(Image.fromarray(np.full((8, 8), 200 * 257, np.uint16)), tmp_path / "a.png")
    save(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), tmp_path / "b.png")
    np.save(tmp_path / "c.npy", np.zeros((8, 8, 5), np.uint8))
    drawn = sheet(tmp_path, Rule(background=90))
    assert num_of(drawn, (200, 200, 200)) == 1
    assert int(num_of(drawn, (90, 90, 90))) == 1  # letters have this gray, too


def test_the_legend_of_a_narrow_sheet_stays_inside(tmp_path: Path) -> None:
    root = tmp_path / ("long" * 40)
    save(noise(), root / "a.png")
    narrow = sheet(root, Rule(size=(4, 4)))
    assert narrow.shape[1] == 16 + 3 * 128 + 16
    assert (narrow[:, -16:] == narrow[0, 0]).all()
    text = "one two three four five six seven eight nine ten"
    lines = _wrapped(text, 60)
    assert " ".join(lines) == text
    assert len(lines) < 10
    assert max(map(_width, lines)) <= 60
