"""Any folder of images, from the files to the batches."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from imgsynth.augment import RandomFlip, RandomTranslation
from imgsynth.data import Arrays, ImageFolder
from imgsynth.data.source import MappedSource
from imgsynth.describe import describe
from imgsynth.testing import check_datamodule


def picture(seed: int, shape: tuple[int, ...] = (20, 28, 3)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of 12 images."""
    for i in range(24):
        write(tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i:02d}.png", picture(i))
    return tmp_path / "pets"


def all_images(data: ImageFolder, split: str = "train") -> torch.Tensor:
    return next(data.reference(split, 1000))[0]


def test_a_folder_of_classes_keeps_the_contract(root: Path) -> None:
    data = ImageFolder(root, size=16, test_fraction=0.25, batch_size=4)
    check_datamodule(data)
    assert (data.image_shape, data.splits) == ((3, 16, 16), ("train", "test"))
    assert (data.class_names, data.class_counts) == (("cat", "dog"), (9, 9))
    assert data.num_images("test") == 6


def test_images_are_those_of_the_files_by_torchvisions_own_transform(root: Path) -> None:
    data = ImageFolder(root, size=16)
    transform = v2.Compose([v2.Resize(16, antialias=True), v2.CenterCrop(16)])
    files = data.files()
    assert files == sorted(str(p.relative_to(root)) for p in root.rglob("*.png"))
    pixels = [torch.from_numpy(np.array(Image.open(root / f))).movedim(2, 0) for f in files]
    expected = torch.stack([transform(p) for p in pixels])
    images, labels = next(data.reference("train", 100))
    assert torch.equal(images, expected)
    assert labels is not None
    assert labels.tolist() == [int(f.startswith("dog")) for f in files]


def test_training_is_from_the_file_and_shared(root: Path) -> None:
    data = ImageFolder(root, size=16, batch_size=4)
    loader = data.train_dataloader()
    assert isinstance(loader.source, MappedSource)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_of_the_same_images_in_memory(root: Path, num_workers: int) -> None:
    data = ImageFolder(root, size=16, batch_size=4, seed=5, num_workers=num_workers)
    images, labels = next(data.reference("train", 100))
    same = Arrays(images, labels, batch_size=4, seed=5)
    loader = data.train_dataloader()
    for ours, theirs in zip(loader, same.train_dataloader(), strict=True):
        assert torch.equal(ours["image"], theirs["image"])
        assert torch.equal(ours["label"], theirs["label"])
    loader.close()
    assert data.fingerprint("train").tolist() == same.fingerprint("train").tolist()


def test_no_resizing_keeps_the_pixels_of_files_of_one_size(root: Path) -> None:
    data = ImageFolder(root)
    assert data.image_shape == (3, 20, 28)
    first = np.array(Image.open(root / data.files()[0]))
    assert np.array_equal(all_images(data)[0].movedim(0, 2).numpy(), first)


def test_a_table_may_stand_beside_the_images(root: Path) -> None:
    names = sorted(str(p.relative_to(root)) for p in root.rglob("*.png"))
    with (root / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", "split"])
        rows.writerows([n, "odd" if int(n[-6:-4]) % 2 else "even", "test" if "0" in n else "train"]
                       for n in names)  # fmt: skip
    data = ImageFolder(root, size=8, table=root / "labels.csv")
    assert data.class_names == ("even", "odd")
    assert data.files("test") == [n for n in names if "0" in n]
    _, labels = next(data.reference("test", 100))
    assert labels is not None
    assert labels.tolist() == [int(n[-6:-4]) % 2 for n in data.files("test")]


def test_files_follow_a_subset_and_a_limit(root: Path) -> None:
    data = ImageFolder(root, size=8)
    files = data.files()
    assert data.subset([5, 2]).files() == [files[5], files[2]]
    few = data.limit(6)
    assert sorted(f.partition("/")[0] for f in few.files()) == ["cat"] * 3 + ["dog"] * 3
    assert torch.equal(all_images(few)[1], all_images(data)[files.index(few.files()[1])])


def test_it_is_described_by_what_rebuilds_it(root: Path) -> None:
    data = ImageFolder(root, size=8, split_by={"test": "cat"}, class_depth=0)
    arguments = describe(data)["init_args"]
    assert arguments["root"] == str(root)
    assert arguments["split_by"] == {"test": "cat"}
    again = ImageFolder(**arguments)
    assert again.fingerprint_of("train") == data.fingerprint_of("train")


@pytest.mark.parametrize("broken", [b"", b"no image at all", "truncated"])
def test_a_broken_file_is_refused_by_name_or_left_out(root: Path, broken: bytes | str) -> None:
    victim = root / "cat" / "04.png"
    victim.write_bytes(victim.read_bytes()[:500] if broken == "truncated" else broken)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"1 of the 24 images in .*pets cannot be used: .*04\.png"):
        ImageFolder(root, size=8, channels=3, bits=8).setup()
    data = ImageFolder(root, size=8, channels=3, bits=8, unusable="skip", batch_size=4)
    with pytest.warns(UserWarning, match=r"cat/04\.png' .* They are left out"):
        data.setup()
    assert data.class_counts == (11, 12)
    assert "cat/04.png" not in data.files()
    check_datamodule(data)


def test_a_folder_of_one_image_trains_with_batches_of_one(tmp_path: Path) -> None:
    write(tmp_path / "one" / "a.png", picture(0))
    data = ImageFolder(tmp_path / "one", size=8, batch_size=1)
    assert (data.num_images(), data.num_classes, data.splits) == (1, 0, ("train",))
    assert len(data.train_dataloader()) == 1
    with pytest.raises(ValueError, match=r"One step needs 64 images .* lower batch_size to 1"):
        ImageFolder(tmp_path / "one", size=8).train_dataloader()


def test_an_image_of_sixty_megapixels_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("L", (10_000, 6_000), 77).save(tmp_path / "in" / "large.jpg")
    data = ImageFolder(tmp_path / "in", size=8)
    assert all_images(data).unique().tolist() == [77]


def test_a_file_without_permission_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imgsynth.data import build as cache

    opened = cache.decode

    def refused(path: str) -> torch.Tensor:
        if path.endswith("07.png"):
            raise cache.UnusableImage("cannot be opened: Permission denied")
        return opened(path)

    monkeypatch.setattr(cache, "decode", refused)
    with pytest.raises(ValueError, match=r"'dog/07\.png' cannot be opened: Permission denied"):
        ImageFolder(root, size=8).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_fraction": 1.0}, "test_fraction and val_fraction must be at least 0 and below 1"),
        ({"test_fraction": -0.1}, "must be at least 0"),
        ({"size": 0}, "size must be"),
        ({"fit": "cut"}, "needs a size"),
        ({"fit": "squeeze"}, "fit must be one of crop"),
        ({"channels": 0}, "channels must be at least 1"),
    ],
)
def test_wrong_settings_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFolder("anywhere", **options)


def test_a_missing_folder_is_named_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"The folder .*gone does not exist"):
        _ = ImageFolder(tmp_path / "gone").image_shape


# -- transforms, which every datamodule has ---------------------------------------------------


def training(data: Any) -> Any:
    strategy = SimpleNamespace(broadcast=lambda x: x, root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(
        training=True, reload_dataloaders_every_n_epochs=0, global_rank=0, world_size=1,
        lightning_module=None, strategy=strategy,
    )  # fmt: skip
    return data


def floats(data: Any, num: int, state: dict[str, Any] | None = None) -> list[torch.Tensor]:
    loader = data.train_dataloader()
    if state is not None:
        loader.load_state_dict(state)
    batches = iter(loader)
    return [data.on_after_batch_transfer(next(batches), 0)["image"] for _ in range(num)]


def test_transforms_change_training_images_only_and_are_the_seeds() -> None:
    images = torch.from_numpy(picture(1, (12, 3, 8, 8)))
    steps = [RandomTranslation(2), RandomFlip()]
    data = training(Arrays(images, batch_size=4, seed=1, channels_last=False, transforms=steps))
    plain = training(Arrays(images, batch_size=4, seed=1, channels_last=False))
    first = floats(data, 3)
    torch.randn(7)  # what happens elsewhere does not matter
    again = floats(data, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, floats(plain, 3), strict=True))
    data.trainer.training = False
    assert all(torch.equal(a, b) for a, b in zip(floats(data, 3), floats(plain, 3), strict=True))


def test_transforms_go_on_where_a_loader_was() -> None:
    images = torch.from_numpy(picture(1, (12, 3, 8, 8)))
    data = training(
        Arrays(images, batch_size=4, seed=1, channels_last=False, transforms=[RandomFlip()])
    )
    whole = floats(data, 3)
    plain = training(Arrays(images, batch_size=4, seed=1, channels_last=False))
    pairs = zip(torch.cat(whole), torch.cat(floats(plain, 3)), strict=True)
    flipped = [torch.equal(ours, image.flip(2)) for ours, image in pairs]
    assert 0 < sum(flipped) < 12
    loader = data.train_dataloader()
    next(iter(loader))
    rest = floats(data, 2, loader.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], rest, strict=True))
