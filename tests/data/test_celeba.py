"""CelebA from files of torchvision's layout, made here."""

import hashlib
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.datasets import utils

from imgsynth.data import CelebA
from imgsynth.describe import describe
from imgsynth.testing import check_datamodule

NUM = 12
FILES = [f"{i + 1:06d}.jpg" for i in range(NUM)]
PARTS = [0, 2, 0, 1, 0, 0, 2, 0, 1, 0, 0, 2]
ATTRIBUTES = ["5_o_Clock_Shadow", "Eyeglasses", "Male", "Smiling", "Young"]
HAS = np.random.default_rng(5).integers(0, 2, (NUM, len(ATTRIBUTES)))
HAS[:2] = [[0] * 5, [1] * 5]  # none is constant
ORDER = np.random.default_rng(6).permutation(NUM).tolist()  # the tables need not be sorted


def tables() -> dict[str, str]:
    """Return the tables as they are published: numbers in columns, some with a header."""

    def table(header: str, numbers: Any) -> str:
        rows = [f"{FILES[i]} " + " ".join(f"{v:3d}" for v in numbers(i)) for i in ORDER]
        return "\n".join([*([str(NUM), header] if header else []), *rows, ""])

    return {
        "list_attr_celeba.txt": table(" ".join(ATTRIBUTES) + " ", lambda i: 2 * HAS[i] - 1),
        "list_eval_partition.txt": table("", lambda i: [PARTS[i]]),
        "identity_CelebA.txt": table("", lambda i: [100 + i]),
        "list_bbox_celeba.txt": table("image_id x_1 y_1 width height", lambda _: [9, 9, 50, 70]),
        "list_landmarks_align_celeba.txt": table(
            "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y "
            "rightmouth_x rightmouth_y", lambda i: [i] * 10,
        ),
    }  # fmt: skip


def colour(number: int) -> tuple[int, int, int]:
    return 20 * number, 255 - 20 * number, 90


def publish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision take what is there for the published files."""
    sums = [
        (key, hashlib.md5((folder / name).read_bytes()).hexdigest(), name)
        for key, _, name in datasets.CelebA.file_list
    ]
    monkeypatch.setattr(datasets.CelebA, "file_list", sums)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data" / "celeba"
    images = folder / "img_align_celeba"
    images.mkdir(parents=True)
    for name, text in tables().items():
        (folder / name).write_text(text)
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as packed:
        for number, name in enumerate(FILES):
            Image.new("RGB", (178, 218), colour(number)).save(images / name, quality=95)
            packed.write(images / name, f"img_align_celeba/{name}")
    publish(folder, monkeypatch)
    return folder.parent


@pytest.fixture(autouse=True)
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of the network, which there is none of."""
    names: list[str] = []

    def no_network(file_id: str, root: Path, filename: str, md5: str) -> None:
        names.append(filename)
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(utils, "download_file_from_google_drive", no_network)
    return names


def test_splits_and_attributes_are_torchvisions(root: Path) -> None:
    for column, attribute in enumerate(ATTRIBUTES):
        data = CelebA(root, size=16, attribute=attribute)
        assert data.class_names == (f"not {attribute}", attribute)
        assert (data.splits, data.image_shape) == (("train", "val", "test"), (3, 16, 16))
        for split, theirs in (("train", "train"), ("val", "valid"), ("test", "test")):
            stored = datasets.CelebA(str(root), split=theirs)
            expected = dict(zip(stored.filename, stored.attr[:, column].tolist(), strict=True))
            _, labels = next(data.reference(split, 100))
            assert labels is not None
            files = data.files(split)
            assert files == sorted(expected)
            assert dict(zip(files, labels.tolist(), strict=True)) == expected


def test_splits_and_attributes_are_those_that_were_written(root: Path) -> None:
    data = CelebA(root, size=16, attribute="Smiling")
    for number, split in enumerate(data.splits):
        numbers = [i for i in range(NUM) if PARTS[i] == number]
        assert data.files(split) == [FILES[i] for i in numbers]
        images, labels = next(data.reference(split, 100))
        assert labels is not None
        assert labels.tolist() == HAS[numbers, ATTRIBUTES.index("Smiling")].tolist()
        wanted = torch.tensor([colour(i) for i in numbers])[:, :, None, None]
        assert (images.int() - wanted).abs().max() < 4


def test_without_an_attribute_images_are_unlabelled(root: Path) -> None:
    data = CelebA(root, size=16)
    assert (data.num_classes, data.class_names, data.class_counts) == (0, (), ())
    assert [data.num_images(split) for split in data.splits] == [PARTS.count(i) for i in range(3)]


@pytest.mark.parametrize("attribute", [None, "Male"])
def test_it_keeps_the_contract(root: Path, attribute: str | None) -> None:
    check_datamodule(CelebA(root, size=16, attribute=attribute, batch_size=3))


def test_images_and_tables_that_are_not_needed_do_not_matter(root: Path) -> None:
    expected = CelebA(root, size=16, attribute="Male").fingerprint_of("train")
    for name in ("identity_CelebA.txt", "list_bbox_celeba.txt", "img_align_celeba.zip"):
        (root / "celeba" / name).unlink()
    images = root / "celeba" / "img_align_celeba"
    shutil.copy(images / FILES[1], images / "000000.jpg")
    data = CelebA(root, size=16, attribute="Male")
    assert data.fingerprint_of("train") == expected
    assert sum(data.num_images(split) for split in data.splits) == NUM


def test_it_is_described_by_what_rebuilds_it(root: Path) -> None:
    data = CelebA(root, size=16, attribute="Male", fit="pad")
    again = CelebA(**describe(data)["init_args"])
    assert (again.root, again.rule) == (data.root, data.rule)
    assert again.fingerprint_of("train") == data.fingerprint_of("train")


@pytest.mark.parametrize("option", [{"val_fraction": 0.1}, {"table": "t.csv"}, {"bits": 16}])
def test_what_the_data_set_settles_cannot_be_set_without_effect(option: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(option))):
        CelebA("anywhere", **option)


# -- errors -----------------------------------------------------------------------------------


def test_an_unknown_attribute_names_the_nearest_or_all(root: Path) -> None:
    with pytest.raises(ValueError, match=r"no attribute 'smiling'; did you mean Smiling\?$"):
        CelebA(root, attribute="smiling").prepare_data()
    message = "no attribute 'xyz'; it has 5_o_Clock_Shadow, Eyeglasses, Male, Smiling, Young"
    with pytest.raises(ValueError, match=message):
        CelebA(root, attribute="xyz").prepare_data()


def test_without_files_the_message_names_folder_and_flag(
    tmp_path: Path, fetched: list[str]
) -> None:
    message = (
        r"No complete CelebA in .*celeba .*: list_eval_partition\.txt, list_attr_celeba\.txt, "
        r"img_align_celeba missing .*--data\.download true.*--data\.root"
    )
    for ask in (CelebA.prepare_data, CelebA.setup, lambda data: data.splits):
        with pytest.raises(FileNotFoundError, match=message):
            ask(CelebA(tmp_path))
    assert not fetched
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["list_attr_celeba.txt", "list_eval_partition.txt"])
def test_a_table_that_is_missing_or_was_changed_is_named(root: Path, name: str) -> None:
    table = root / "celeba" / name
    table.write_text(table.read_text().replace("1", "0", 1))
    with pytest.raises(FileNotFoundError, match=rf": {name} missing or not as published"):
        CelebA(root).prepare_data()
    table.unlink()
    with pytest.raises(FileNotFoundError, match=rf": {name} missing or not as published"):
        CelebA(root).prepare_data()


def test_missing_images_are_counted_and_one_is_named(root: Path) -> None:
    for name in (FILES[4], FILES[7]):
        (root / "celeba" / "img_align_celeba" / name).unlink()
    first = next(FILES[i] for i in ORDER if i in {4, 7})
    message = rf"2 of the 12 images of CelebA are not in .*img_align_celeba, such as {first}; "
    with pytest.raises(FileNotFoundError, match=message):
        CelebA(root).prepare_data()


# -- download ---------------------------------------------------------------------------------


def test_nothing_is_fetched_that_is_there_or_was_not_asked_for(
    root: Path, fetched: list[str]
) -> None:
    CelebA(root, size=16, download=True).prepare_data()
    shutil.rmtree(root / "celeba" / "img_align_celeba")
    with pytest.raises(FileNotFoundError, match="img_align_celeba missing"):
        CelebA(root, size=16).prepare_data()
    assert not fetched


def test_an_archive_that_is_there_is_unpacked_without_the_network(
    root: Path, fetched: list[str]
) -> None:
    expected = CelebA(root, size=16).fingerprint_of("train")
    images = root / "celeba" / "img_align_celeba"
    shutil.rmtree(images)
    left = images.with_name("img_align_celeba.part")  # by one that was interrupted
    (left / images.name).mkdir(parents=True)
    (left / images.name / "left.jpg").touch()
    data = CelebA(root, size=16, download=True)
    assert data.image_shape == (3, 16, 16)  # which asks for the images
    assert data.fingerprint_of("train") == expected
    assert sorted(path.name for path in images.iterdir()) == FILES
    assert not left.exists()
    assert not fetched


def test_what_is_missing_is_fetched_by_its_published_sum(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = CelebA(root, size=16).fingerprint_of("train")
    server, asked = tmp_path / "server", []
    (root / "celeba").rename(server)

    def fetch(file_id: str, root: Path, filename: str, md5: str) -> None:
        asked.append((file_id, md5, filename))
        shutil.copy(server / filename, root)

    monkeypatch.setattr(utils, "download_file_from_google_drive", fetch)
    assert CelebA(root, size=16, download=True).fingerprint_of("train") == expected
    needed = {"list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba.zip"}
    assert {name for _, _, name in asked} == needed
    assert set(asked) <= set(datasets.CelebA.file_list)


class QuotaError(Exception):
    """As gdown's, which are neither RuntimeError nor OSError."""


@pytest.mark.parametrize("error", [RuntimeError, OSError, QuotaError])
def test_a_failed_download_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error("too many have asked")

    monkeypatch.setattr(utils, "download_file_from_google_drive", fail)
    message = "CelebA could not be downloaded to .*celeba: too many have asked"
    with pytest.raises(ValueError, match=message):
        CelebA(tmp_path, download=True).prepare_data()


def test_a_broken_archive_leaves_nothing_that_looks_complete(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root / "celeba"
    shutil.rmtree(folder / "img_align_celeba")
    archive = folder / "img_align_celeba.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    publish(folder, monkeypatch)
    with pytest.raises(ValueError, match=r"CelebA could not be downloaded to .*zip file"):
        CelebA(root, download=True).prepare_data()
    assert not (folder / "img_align_celeba").exists()
