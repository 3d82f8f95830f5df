"""Photographs of the installed packages, against the files themselves."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from imgsynth.data.photos import PHOTOGRAPHS, Photos, photograph
from imgsynth.testing import check_datamodule

SMALL = "microaneurysms"


def folder_of(package: str, *parts: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0], *parts)


def images_of(data: Photos, split: str = "train") -> torch.Tensor:
    return next(data.reference(split, 10000))[0]


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_every_photograph_is_its_file_channels_first(name: str) -> None:
    (file,) = [
        *folder_of("skimage", "data").glob(f"{name}.*"),
        *folder_of("sklearn", "datasets", "images").glob(f"{name}.*"),
    ]
    found = photograph(name)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    with Image.open(file) as stored:
        assert stored.mode == {1: "L", 3: "RGB"}[len(found)]
        bands = stored.split()
    for channel, band in zip(found.numpy(), bands, strict=True):
        assert np.array_equal(channel, np.array(band))


@pytest.mark.parametrize("name", ["china", "flower"])
def test_the_photographs_of_scikit_learn_are_those_it_loads(name: str) -> None:
    found = photograph(name).permute(1, 2, 0).numpy()
    assert np.array_equal(found, load_sample_image(f"{name}.jpg"))


def test_the_default_is_natural_photographs_with_two_held_out() -> None:
    data = Photos()
    counts = {"coffee": 9 * 6, "rocket": 10 * 6, "motorcycle_left": 11 * 7, "china": 60}
    assert data.num_images("train") == sum(counts.values()) + 60
    assert data.num_images("test") == 8 * 8 + 7 * 4
    assert (data.image_shape, data.num_classes) == ((3, 64, 64), 0)
    assert data.photographs["test"] == ("astronaut", "chelsea")
    assert not set(data.fingerprint("train")) & set(data.fingerprint("test"))


@pytest.mark.parametrize(
    ("size", "stride", "left", "top", "columns", "rows"),
    [(100, 60, 25, 10, 6, 4), (100, None, 25, 0, 4, 3), (300, 400, 75, 0, 1, 1)],
)
def test_patches_are_a_centred_grid_row_by_row(
    size: int, stride: int | None, left: int, top: int, columns: int, rows: int
) -> None:
    patches = images_of(Photos(size=size, stride=stride, train=["chelsea"], test=["coffee"]))
    assert len(patches) == rows * columns
    step = stride or size
    with Image.open(folder_of("skimage", "data", "chelsea.png")) as whole:
        assert whole.size == (451, 300)
        for place, patch in enumerate(patches):
            x, y = left + step * (place % columns), top + step * (place // columns)
            crop = np.array(whole.crop((x, y, x + size, y + size)))
            assert np.array_equal(patch.permute(1, 2, 0).numpy(), crop)


def test_photographs_come_in_the_order_of_their_names_in_the_argument() -> None:
    one, other = (images_of(Photos(size=100, train=[name])) for name in (SMALL, "coffee"))
    both = images_of(Photos(size=100, train=["coffee", SMALL]))
    assert torch.equal(both, torch.cat([other, one]))


def test_gray_photographs_get_three_equal_channels() -> None:
    images = images_of(Photos(train="camera"))
    assert images.shape == (64, 3, 64, 64)
    assert torch.equal(images[0, 1], photograph("camera")[0, :64, :64])
    assert (images == images[:, :1]).all()


def test_gray_is_the_luma_of_itu_r_601() -> None:
    data = Photos(size=100, train=["coffee", SMALL], gray=True)
    assert data.image_shape == (1, 100, 100)
    red, green, blue = photograph("coffee").double()[:, :100, :100]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    # half a level of rounding, and what Pillow's 16-bit weights are off
    assert (images_of(data)[0, 0] - luma).abs().max() < 0.51
    assert torch.equal(images_of(data)[-1, 0], photograph(SMALL)[0, 1:101, 1:101])


def test_the_test_split_can_be_left_out() -> None:
    assert Photos(test=[]).splits == ("train",)


def test_photos_keep_the_contract() -> None:
    check_datamodule(Photos(size=64, train=["coffee"], test=["chelsea"], batch_size=20))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cofee", "coffee"),
        ("Chelsea", "chelsea"),
        ("cat", "chelsea"),
        ("chelsea.png", "chelsea"),
        ("immunohistochemistry", "ihc"),
    ],
)
def test_an_unknown_name_is_refused_with_the_one_meant(name: str, meant: str) -> None:
    message = rf"no photograph '{name}'; did you mean '{meant}'\? There are astronaut, brick"
    with pytest.raises(ValueError, match=message):
        Photos(train=["coffee", name])
    with pytest.raises(ValueError, match=message):
        photograph(name)


def test_a_name_like_none_there_is_lists_them_all() -> None:
    with pytest.raises(ValueError, match=r"no photograph 'xyz'; there are astronaut, .*, text\.$"):
        photograph("xyz")


@pytest.mark.parametrize(
    ("train", "test", "what"),
    [
        (["coffee", "chelsea"], ["chelsea"], "the same photograph"),
        (["motorcycle_left"], ["motorcycle_right"], "nearly the same picture"),
        (["motorcycle_right"], ["motorcycle_left"], "nearly the same picture"),
    ],
)
def test_nothing_is_trained_on_and_tested_on(train: list[str], test: list[str], what: str) -> None:
    message = rf"Trained on is '{train[-1]}', tested on '{test[0]}', which is {what}; take it out"
    with pytest.raises(ValueError, match=message):
        Photos(train=train, test=test)


def test_a_photograph_smaller_than_a_patch_is_named() -> None:
    message = r"'chelsea' is 451x300 pixels .* a patch of 301x301; lower size to 300 or less"
    with pytest.raises(ValueError, match=message):
        Photos(size=301).setup()
    Photos(size=300).setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"train": []}, "train must name at least one photograph"),
        ({"train": ["coffee", "coffee"]}, "'coffee' is named twice"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Photos(**arguments)  # type: ignore[arg-type]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(FileNotFoundError, match="needs it installed; pip install scikit-image"):
        photograph("coffee")
    assert photograph("china").shape == (3, 427, 640)


def test_a_package_without_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "skimage").mkdir()
    (tmp_path / "skimage" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    with pytest.raises(FileNotFoundError, match="'coffee' comes with scikit-image and is not in"):
        photograph("coffee")
