"""Every finding against a folder with known content."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgsynth.data import ImageFolder
from imgsynth.data import check as checking
from imgsynth.data.check import Report, check
from imgsynth.data.decode import decode
from imgsynth.data.organise import Organiser
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


def report(root: Path, rule: Rule | None = None, **options: Any) -> Report:
    listing = scan(root)
    organisation = Organiser(root, **options)(listing.names, listing.empty)
    return check(listing, rule or Rule(), organisation)


def kinds(found: Report) -> list[str]:
    return [finding.kind for finding in found.findings]


def text(found: Report, kind: str) -> str:
    (finding,) = (finding for finding in found.findings if finding.kind == kind)
    return finding.text


# -- counts ----------------------------------------------------------------------------------------


def test_files_splits_and_classes_are_counted(tmp_path: Path) -> None:
    for split, name, num in (("train", "cat", 6), ("train", "dog", 2), ("test", "dog", 1)):
        for i in range(num):
            save(noise(), tmp_path / split / name / f"{i}.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "train" / "cat" / "more").mkdir()
    found = report(tmp_path)
    assert (found.num_images, found.num_left_out, sum(found.others.values())) == (9, 0, 1)
    assert found.empty_folders == ("train/cat/more",)
    assert found.splits == {"train": 8, "test": 1}
    assert found.classes == {"cat": {"train": 6, "test": 0}, "dog": {"train": 2, "test": 1}}
    assert found.imbalance == 2
    assert found.findings == ()
    assert found.is_good
    assert found.advice == {}


def test_images_of_one_folder_have_no_classes(tmp_path: Path) -> None:
    save(noise(), tmp_path / "a.png")
    found = report(tmp_path)
    assert (found.splits, found.classes, found.imbalance) == ({"train": 1}, {}, None)


def test_images_in_no_split_are_not_looked_at(tmp_path: Path) -> None:
    save(noise(), tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"")
    (tmp_path / "table.csv").write_text("file,split\na.png,train\n")
    found = report(tmp_path, table=tmp_path / "table.csv", allow_unlisted=True)
    assert (found.num_images, found.num_left_out) == (1, 1)
    assert found.is_good


def test_each_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        save(noise(), tmp_path / f"{i}.png")
    decoded: list[str] = []

    def counting(path: str | Path) -> Any:
        decoded.append(Path(path).name)
        return decode(path)

    monkeypatch.setattr(checking, "decode", counting)
    report(tmp_path, Rule(size=(4, 4)))
    assert sorted(decoded) == [f"{i}.png" for i in range(5)]


def test_more_files_than_are_looked_at_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "_AT_ONCE", 3)
    for i in range(7):
        save(noise(4, 4 + i), tmp_path / f"{i}.png")
    found = report(tmp_path)
    assert found.sizes is not None
    assert found.sizes.num_distinct == 7
    assert found.formats == {"PNG": 7}


# -- what images are like --------------------------------------------------------------------------


def test_sizes_and_shapes(tmp_path: Path) -> None:
    sizes = [(10, 30), (10, 10), (20, 10), (20, 10), (40, 20)]
    for i, (height, width) in enumerate(sizes):
        save(noise(height, width), tmp_path / f"{i}.png")
    found = report(tmp_path).sizes
    assert found is not None
    assert (found.smallest, found.median, found.largest) == ((10, 10), (20, 10), (40, 20))
    assert found.num_distinct == 4
    assert found.aspect == (0.5, 0.5, 3.0)


def test_formats_modes_channels_bits_and_rotations(tmp_path: Path) -> None:
    save(noise(mode="RGB"), tmp_path / "a.png")
    save(noise(mode="L"), tmp_path / "b.png")
    save(noise(mode="RGBA"), tmp_path / "c.png")
    save(noise(mode="RGB"), tmp_path / "d.bmp")
    save(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)), tmp_path / "e.png")
    turned = noise(4, 8)
    turned.getexif()[274] = 6
    save(turned, tmp_path / "f.jpg", exif=turned.getexif())
    found = report(tmp_path)
    assert found.formats == {"PNG": 4, "BMP": 1, "JPEG": 1}
    assert found.modes.items() >= {"RGB": 3, "L": 1, "RGBA": 1}.items()
    assert sum(found.modes.values()) == 6
    assert found.channels == {3: 3, 1: 2, 4: 1}
    assert found.bits == {8: 5, 16: 1}
    assert found.rotated == 1
    assert found.sizes is not None
    assert found.sizes.smallest == (8, 4)  # after the rotation


@pytest.mark.parametrize(
    ("levels", "bits", "expected"),
    [((7, 7), 8, True), ((0, 3), 8, True), ((0, 4), 8, False), ((9, 255), 8, False),
     ((0, 3 * 257), 16, True), ((0, 4 * 257), 16, False)],
)  # fmt: skip
def test_an_image_with_a_deviation_below_2_levels_is_constant(
    tmp_path: Path, levels: tuple[int, int], bits: int, expected: bool
) -> None:
    # half of the pixels have one level, half the other: the deviation is half the difference
    pixels = np.array([levels] * 8, np.uint8 if bits == 8 else np.uint16)
    save(Image.fromarray(pixels), tmp_path / "a.png")
    found = report(tmp_path)
    assert found.constant == (("a.png",) if expected else ())
    assert kinds(found) == (["constant"] if expected else [])
    assert found.is_good


def test_a_coloured_plane_is_constant_and_a_single_channel_saves_an_image(tmp_path: Path) -> None:
    save(Image.new("RGB", (8, 8), (200, 3, 90)), tmp_path / "flat.png")
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :, 2] = 100
    save(Image.fromarray(pixels), tmp_path / "blue.png")
    found = report(tmp_path)
    assert found.constant == ("flat.png",)
    assert text(found, "constant") == "1 image nearly of one colour."


# -- broken files and duplicates -------------------------------------------------------------------


def test_broken_files_are_named_with_their_reason_and_are_no_duplicates(tmp_path: Path) -> None:
    save(noise(), tmp_path / "good.png")
    whole = save(noise(32, 32), tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    for name in ("empty.png", "empty2.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    found = report(tmp_path)
    assert list(found.broken) == ["cut.jpg", "empty.png", "empty2.png", "text.png"]
    assert "truncated" in found.broken["cut.jpg"].lower()
    assert found.broken["empty.png"] == "is empty (0 bytes)"
    assert text(found, "broken") == "4 images cannot be read."
    assert not found.is_good
    assert found.duplicates == ()
    assert found.num_usable == 1
    assert found.advice["unusable"] == "skip"


def test_copies_are_found_by_their_pixels_and_told_from_the_same_bytes(tmp_path: Path) -> None:
    first = save(noise(), tmp_path / "a.png")
    shutil.copy(first, tmp_path / "b.png")
    other = save(noise(), tmp_path / "c.png")
    save(Image.open(other), tmp_path / "d.bmp")
    save(noise(), tmp_path / "e.png")
    found = report(tmp_path)
    groups = [(group.files, group.same_bytes, group.kind) for group in found.duplicates]
    assert groups == [
        (("a.png", "b.png"), True, "duplicates"), (("c.png", "d.bmp"), False, "duplicates"),
    ]  # fmt: skip
    assert text(found, "duplicates") == "2 images in more than one file."
    assert found.is_good


def test_the_same_numbers_in_another_shape_are_no_copy(tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint8)
    save(Image.fromarray(pixels.reshape(4, 16)), tmp_path / "a.png")
    save(Image.fromarray(pixels.reshape(16, 4)), tmp_path / "b.png")
    assert report(tmp_path).duplicates == ()


def test_copies_in_several_splits_are_a_leak_and_in_several_classes_a_conflict(
    tmp_path: Path,
) -> None:
    for name in ("train/cat/0", "train/dog/1", "test/cat/2", "test/dog/3"):
        save(noise(), tmp_path / f"{name}.png")
        shutil.copy(tmp_path / f"{name}.png", tmp_path / f"{name}-again.png")
    shutil.copy(tmp_path / "train/dog/1.png", tmp_path / "train/cat/wrong.png")
    shutil.copy(tmp_path / "train/cat/0.png", tmp_path / "test/dog/leak.png")
    found = report(tmp_path)
    leak, conflict, *others = found.duplicates
    assert leak.kind == "leak"
    assert leak.files == ("test/dog/leak.png", "train/cat/0-again.png", "train/cat/0.png")
    assert leak.splits == ("test", "train", "train")
    assert leak.classes == ("dog", "cat", "cat")
    assert conflict.kind == "conflict"
    assert conflict.classes == ("cat", "dog", "dog")
    assert [group.kind for group in others] == ["duplicates"] * 2
    assert kinds(found) == ["leak", "conflict", "duplicates"]
    assert text(found, "leak") == "1 image in more than one split: a LEAK."
    assert not found.is_good


# -- what the rule does ----------------------------------------------------------------------------

# to 20x20: these sizes, of which 3, 0 and 2 quarters do not fit into a square
SIZES = [(10, 40), *[(30, 30)] * 9, *[(20, 10)] * 6]
EFFECTS = {
    "crop": (0.0, 0.75, "00.png", 7, 2.0, "00.png"),
    "pad": (0.0, 0.0, "", 0, 1.0, ""),
    "stretch": (0.0, 0.0, "", 7, 2.0, "00.png"),
}


@pytest.mark.parametrize("fit", EFFECTS)
def test_what_is_cut_away_and_enlarged(tmp_path: Path, fit: Any) -> None:
    for i, size in enumerate(SIZES):
        save(noise(*size), tmp_path / f"{i:02}.png")
    effect = report(tmp_path, Rule(size=(20, 20), fit=fit)).effect
    removed, most_removed, most_removed_file, num, most, most_file = EFFECTS[fit]
    assert effect is not None
    assert effect.num_smaller == 7
    assert (effect.removed, effect.most_removed) == (removed, most_removed)
    assert effect.most_removed_file == most_removed_file
    assert (effect.num_enlarged, effect.most_enlarged) == (num, most)
    assert effect.most_enlarged_file == most_file


def test_images_too_small_to_cut_are_named(tmp_path: Path) -> None:
    save(noise(10, 20), tmp_path / "a.png")
    save(noise(9, 30), tmp_path / "small.png")
    found = report(tmp_path, Rule(size=(10, 10), fit="cut"))
    assert list(found.unfit) == ["small.png"]
    assert "smaller" in found.unfit["small.png"]
    assert found.effect is not None
    assert (found.effect.num_smaller, found.effect.num_enlarged) == (1, 0)
    assert (found.effect.removed, found.effect.most_removed_file) == (0.5, "a.png")
    assert kinds(found) == ["unfit"]
    assert found.advice == {"unusable": "skip"}


def test_without_a_size_there_is_no_effect(tmp_path: Path) -> None:
    save(noise(), tmp_path / "a.png")
    assert report(tmp_path).effect is None


def mixed(root: Path) -> None:
    """Two sizes, three numbers of channels, two depths, and a broken file."""
    save(noise(20, 20, "RGB"), root / "a.png")
    save(noise(40, 30, "L"), root / "b.png")
    save(noise(40, 30, "RGBA"), root / "c.png")
    save(Image.fromarray(rng.integers(0, 65536, (40, 30)).astype(np.uint16)), root / "d.png")
    (root / "e.png").write_bytes(b"")


def test_what_differs_has_to_be_said_and_then_the_folder_loads(tmp_path: Path) -> None:
    mixed(tmp_path)
    found = report(tmp_path)
    assert kinds(found) == ["broken", "sizes", "channels", "bits"]
    assert text(found, "sizes") == "Images have 2 sizes; say which all get."
    assert text(found, "channels") == "Images have 1, 3 and 4 channels; say how many all get."
    assert text(found, "bits") == "Images have 8 and 16 bits; say how many all get."
    assert found.advice == {"size": 16, "channels": 3, "bits": 8, "unusable": "skip"}
    for missing in found.advice:  # each is needed, and all together are enough
        given: dict[str, Any] = {k: v for k, v in found.advice.items() if k != missing}
        with pytest.raises(ValueError, match=r"different|cannot be used"):
            ImageFolder(tmp_path, **given).prepare_data()
    everything: dict[str, Any] = dict(found.advice)
    data = ImageFolder(tmp_path, **everything)
    with pytest.warns(UserWarning, match="left out"):
        data.prepare_data()
    data.setup("fit")
    assert data.image_shape == (3, 16, 16)
    assert data.num_images("train") == 4


def test_what_the_rule_says_is_no_finding(tmp_path: Path) -> None:
    mixed(tmp_path)
    found = report(tmp_path, Rule(size=(16, 16), channels=1, bits=8))
    assert kinds(found) == ["broken"]
    assert found.advice == {"unusable": "skip"}


@pytest.mark.parametrize(
    ("sides", "expected"),
    [([20, 21], 16), ([32, 33], 32), ([3, 40], 2), ([300, 700], 256), ([9, *[64] * 9], 8),
     ([9, *[64] * 39], 64)],
)  # fmt: skip
def test_the_proposed_size_enlarges_few(
    tmp_path: Path, sides: Sequence[int], expected: int
) -> None:
    for i, side in enumerate(sides):
        save(Image.new("L", (side + i % 2, side)), tmp_path / f"{i:03}.bmp")
    assert report(tmp_path).advice["size"] == expected


@pytest.mark.parametrize(
    ("modes", "expected"),
    [(("L", "LA"), 1), (("L", "RGB"), 3), (("LA", "RGBA"), 3)],
)
def test_the_proposed_channels_keep_colour(
    tmp_path: Path, modes: tuple[str, str], expected: int
) -> None:
    for mode in modes:
        save(noise(mode=mode), tmp_path / f"{mode}.png")
    found = report(tmp_path)
    assert found.advice == {"channels": expected}
    ImageFolder(tmp_path, channels=expected).prepare_data()


def test_images_of_many_channels_are_left_out_where_most_are_colour(tmp_path: Path) -> None:
    for name in "ab":
        save(noise(), tmp_path / f"{name}.png")
    np.save(tmp_path / "c.npy", rng.integers(0, 256, (8, 8, 5), dtype=np.uint8))
    assert report(tmp_path).advice == {"channels": 3, "unusable": "skip"}


# -- organisation ----------------------------------------------------------------------------------


def test_a_problem_of_organisation_is_a_finding_among_others(tmp_path: Path) -> None:
    save(noise(), tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    found = check(scan(tmp_path), Rule(), None, "It is not clear.")
    assert kinds(found) == ["organisation", "broken"]
    assert text(found, "organisation") == "It is not clear."
    assert (found.num_images, found.splits, found.classes) == (2, {}, {})


def test_copies_without_splits_are_only_duplicates(tmp_path: Path) -> None:
    shutil.copy(save(noise(), tmp_path / "a.png"), tmp_path / "b.png")
    (group,) = check(scan(tmp_path), Rule(), None, "It is not clear.").duplicates
    assert (group.kind, group.splits, group.classes) == ("duplicates", (), ())


def test_classes_without_images_are_named(tmp_path: Path) -> None:
    save(noise(), tmp_path / "cat" / "a.png")
    save(noise(), tmp_path / "dog" / "a.png")
    found = report(tmp_path, class_names=("cat", "dog", "fish", "bird"))
    assert text(found, "empty_class") == "Classes without images: 'fish', 'bird'."
    assert found.imbalance == 1
    assert not found.is_good


def test_a_folder_of_broken_files_has_no_sizes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    found = report(tmp_path, Rule(size=(4, 4)))
    assert found.sizes is None
    assert found.num_usable == 0
