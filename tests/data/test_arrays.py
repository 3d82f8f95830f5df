"""Images from files and arrays, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imgsynth.data import Arrays

RNG = np.random.default_rng(1)
PIXELS = RNG.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(12) % 4


def images_of(data: Arrays, split: str = "train") -> np.ndarray[Any, Any]:
    return next(data.reference(split, 1000))[0].numpy()


def labels_of(data: Arrays, split: str = "train") -> list[int]:
    labels = next(data.reference(split, 1000))[1]
    assert labels is not None
    return labels.tolist()


@pytest.mark.parametrize("kind", ["npy", "npz", "array", "tensor"])
def test_every_way_to_give_them_gives_the_same_images_and_labels(kind: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PIXELS)
    np.save(tmp_path / "y.npy", LABELS)
    np.savez(tmp_path / "both.npz", images=PIXELS, labels=LABELS)
    data = {
        "npy": lambda: Arrays(tmp_path / "x.npy", str(tmp_path / "y.npy")),
        "npz": lambda: Arrays(tmp_path / "both.npz"),
        "array": lambda: Arrays(PIXELS, LABELS),
        "tensor": lambda: Arrays(torch.from_numpy(PIXELS), torch.from_numpy(LABELS)),
    }[kind]()
    assert data.image_shape == (3, 8, 8)
    assert np.array_equal(images_of(data), PIXELS.transpose(0, 3, 1, 2))
    assert labels_of(data) == LABELS.tolist()
    assert data.splits == ("train",)


@pytest.mark.parametrize(
    ("shape", "channels_last", "expected"),
    [
        ((5, 8, 9), None, (1, 8, 9)),
        ((5, 8, 9, 3), None, (3, 8, 9)),
        ((5, 3, 8, 9), None, (3, 8, 9)),
        ((5, 4, 8, 4), True, (4, 4, 8)),
        ((5, 4, 8, 4), False, (4, 8, 4)),
        ((5, 8, 9, 6), True, (6, 8, 9)),
        ((5, 6, 8, 9), False, (6, 8, 9)),
    ],
)
def test_the_channels_are_found(
    shape: tuple[int, ...], channels_last: bool | None, expected: tuple[int, int, int]
) -> None:
    data = Arrays(np.zeros(shape, np.uint8), channels_last=channels_last)
    assert data.image_shape == expected


@pytest.mark.parametrize("shape", [(5, 4, 8, 4), (5, 8, 9, 6)])
def test_ambiguous_channels_must_be_said(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not tell where the channels are; pass channels_las"):
        Arrays(np.zeros(shape, np.uint8)).setup()


def test_channels_last_without_channels_is_ignored_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="channels_last is ignored"):
        Arrays(np.zeros((5, 8, 8), np.uint8), channels_last=True).setup()


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_images_keep_their_values_in_either_byte_order(order: str, tmp_path: Path) -> None:
    pixels = np.array([0, 256, 40000, 65535], dtype=order).reshape(1, 2, 2)
    np.save(tmp_path / "x.npy", pixels)
    assert images_of(Arrays(tmp_path / "x.npy")).flatten().tolist() == [0, 256, 40000, 65535]


def test_a_test_split_can_be_given(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", images=PIXELS[:3], labels=LABELS[:3])
    data = Arrays(PIXELS, LABELS, test_images=tmp_path / "test.npz", class_names=list("abcd"))
    assert data.splits == ("train", "test")
    assert labels_of(data, "test") == [0, 1, 2]
    assert data.class_names == ("a", "b", "c", "d")


def test_a_fraction_is_split_off_by_a_fixed_permutation() -> None:
    order = np.random.default_rng(0).permutation(12)
    data = Arrays(PIXELS, LABELS, test_fraction=0.25, seed=5)
    assert labels_of(data) == LABELS[order[:9]].tolist()
    assert labels_of(data, "test") == LABELS[order[9:]].tolist()
    assert np.array_equal(images_of(data, "test"), PIXELS[order[9:]].transpose(0, 3, 1, 2))


def test_other_names_in_the_archive_can_be_given(tmp_path: Path) -> None:
    np.savez(tmp_path / "xy.npz", x=PIXELS, y=LABELS)
    data = Arrays(tmp_path / "xy.npz", images_key="x", labels_key="y")
    assert labels_of(data) == LABELS.tolist()
    with pytest.raises(ValueError, match=r"no array 'images', it holds 'x', 'y'; .*images_key"):
        Arrays(tmp_path / "xy.npz").setup()
    with pytest.raises(ValueError, match="no array 'labels'"):
        Arrays(tmp_path / "xy.npz", images_key="x", labels_key="labels").setup()
    assert Arrays(tmp_path / "xy.npz", images_key="x").num_classes == 0


def test_a_missing_file_is_named_with_the_place_looked_in(tmp_path: Path) -> None:
    for name in ("nothing.npy", "nothing.npz"):
        with pytest.raises(FileNotFoundError, match=rf"{name} does not exist .looked for /"):
            Arrays(tmp_path / name).setup()
    with pytest.raises(FileNotFoundError, match="is a folder"):
        Arrays(tmp_path).setup()


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["npy", "npz", "raw"])
def test_pickled_objects_are_refused_and_nothing_is_executed(kind: str, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    objects = np.array([Bomb(trap)], dtype=object)
    path = tmp_path / f"x.{'npz' if kind == 'npz' else 'npy'}"
    if kind == "npz":
        np.savez(path, images=objects)
    elif kind == "npy":
        np.save(path, objects, allow_pickle=True)
    else:
        path.write_bytes(objects.dumps())
    with pytest.raises(ValueError, match="holds pickled Python objects, which are never loaded"):
        Arrays(path).setup()
    assert not trap.exists()


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_truncated_file_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    with path.open("wb") as file:
        np.save(file, PIXELS) if suffix == "npy" else np.savez(file, images=PIXELS)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cannot be read as .npy or .npz"):
        Arrays(path).setup()
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be read as .npy or .npz"):
        Arrays(path).setup()


def test_archives_and_single_arrays_are_told_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "both.npz", labels=LABELS)
    with pytest.raises(ValueError, match=r"is an archive .* expected a single array"):
        Arrays(PIXELS, tmp_path / "both.npz").setup()
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, PIXELS)
    with pytest.raises(ValueError, match="single array in spite of its name"):
        Arrays(tmp_path / "one.npz").setup()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": PIXELS / 100}, r"from 0 to 2.55 \(float64\), which .* value_range=\(0, 2.55\)"),
        ({"images": np.full((4, 8, 8), np.nan)}, "NaN or infinite"),
        ({"images": PIXELS / 255 + np.nan, "value_range": (0, 1)}, "hold values that are NaN"),
        ({"images": PIXELS.astype("i2") - 1}, r"values from -1 to 254 \(int16\), which does not"),
        ({"images": PIXELS.astype("i4") * 1000}, "values from 0 to 255000"),
        ({"images": PIXELS, "value_range": (1, 1)}, r"rising, got \(1, 1\)"),
        (
            {"images": PIXELS / 255, "test_images": PIXELS / 100},
            "from 0 to 1, others from 0 to 2.55",
        ),
        ({"images": PIXELS, "test_images": PIXELS.astype("u2")}, "of dtype torch.uint16, but"),
        ({"images": PIXELS[:0]}, "there are no images"),
        ({"images": PIXELS[0, 0]}, r"\(N, H, W, C\) or \(N, C, H, W\), got \(8, 3\)"),
        ({"images": np.array([None, 1])}, "Expected images as a numeric array, got dtype object"),
        ({"images": PIXELS, "labels": np.array(["a"] * 12)}, "Expected labels as a numeric"),
        ({"images": PIXELS, "labels": LABELS / 1}, "whole numbers .* got torch.float64"),
        ({"images": PIXELS, "labels": LABELS[:9]}, r"shape \(12,\), got \(9,\)"),
        (
            {"images": PIXELS, "labels": LABELS[:9], "test_fraction": 0.5},
            r"shape \(12,\), got \(9,\)",
        ),
        ({"images": PIXELS, "labels": LABELS - 1}, "labels from -1 to 2"),
        ({"images": PIXELS, "labels": LABELS, "class_names": ["a", "b"]}, "2 class names"),
        ({"images": PIXELS, "class_names": ["a", "b"]}, "2 class names but no labels"),
        ({"images": PIXELS, "test_images": PIXELS, "test_fraction": 0.5}, "not both"),
        ({"images": PIXELS, "test_labels": LABELS}, "without test_images; pass both"),
        ({"images": PIXELS, "test_fraction": 1.0}, "between 0 and 1, got 1.0"),
        ({"images": PIXELS, "test_fraction": 0.01}, "leaves 12 to train on and 0 to test on"),
        ({"images": PIXELS, "labels": LABELS, "test_images": PIXELS}, "split 'test': no labels"),
    ],
)
def test_wrong_arrays_are_refused_with_what_was_expected(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Arrays(**settings).setup()


def test_unsigned_labels_of_any_width_become_int64() -> None:
    for dtype in ("u1", "u2", "u4", "u8", "i1", ">i4"):
        assert labels_of(Arrays(PIXELS, LABELS.astype(dtype))) == LABELS.tolist()


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (PIXELS / 255, PIXELS),
        ((PIXELS / 255).astype(np.float16), PIXELS),
        (torch.from_numpy(PIXELS / 255).bfloat16(), None),
        (PIXELS / 127.5 - 1, PIXELS),
        (PIXELS.astype(np.float32), PIXELS),
        (PIXELS.astype(np.int64), PIXELS),
        (PIXELS > 9, (PIXELS > 9) * np.uint8(255)),
        (PIXELS.astype(np.int32) * 257, PIXELS.astype(np.uint16) * 257),
    ],
)
def test_numbers_of_any_type_become_whole_levels(images: Any, expected: Any) -> None:
    found = next(Arrays(images).reference("train", 100))[0].movedim(1, 3).numpy()
    if expected is None:  # 8 binary digits do not keep 255 levels apart
        assert np.abs(found.astype(int) - PIXELS).max() <= 1
    else:
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)


def test_a_given_range_says_what_is_black_and_white_and_clips_beyond() -> None:
    scan = np.array([-2000, -1000, -500, 1000, 3000], np.int16).reshape(5, 1, 1)
    for bits, largest in ((None, 255), (16, 65535)):
        data = Arrays(scan, value_range=(-1000, 1000), bits=bits)
        found = next(data.reference("train"))[0].flatten().tolist()
        assert found == [0, 0, round(largest / 4), largest, largest]
    deep = Arrays(np.array([0, 128, 129, 65535], "u2").reshape(4, 1, 1), bits=8)
    assert next(deep.reference("train"))[0].flatten().tolist() == [0, 0, 1, 255]


def test_images_that_are_surprisingly_dark_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"brightest value .* is 16, .* value_range=\(0, 16\)"):
        Arrays(np.arange(17).reshape(17, 1, 1)).setup()


def test_the_test_split_is_read_by_the_range_of_the_training_split() -> None:
    train, test = PIXELS / 127.5 - 1, np.full((2, 8, 8, 3), 0.5)
    found = next(Arrays(train, test_images=test).reference("test"))[0]
    assert found.unique().tolist() == [191]
