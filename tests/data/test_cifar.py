"""CIFAR-10 and CIFAR-100 from files of torchvision's layout, made here."""

import hashlib
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from imgsynth.data.cifar import CIFAR10, CIFAR100
from imgsynth.testing import check_datamodule

PIXELS = np.random.default_rng(3).integers(0, 256, (14, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(14) % 10
PARTS = {"train": slice(0, 10), "test": slice(10, 14)}


def sum_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def entry(part: slice, labels: str) -> dict[str, Any]:
    """Return what one file holds: rows of 1,024 red, 1,024 green and 1,024 blue values."""
    return {"data": PIXELS[part].reshape(-1, 3072), labels: LABELS[part].tolist()}


@pytest.fixture(params=[CIFAR10, CIFAR100])
def kind(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> type[CIFAR10]:
    if request.param is CIFAR10:
        published, folder, meta = datasets.CIFAR10, "cifar-10-batches-py", "batches.meta"
        files = {f"data_batch_{i + 1}": entry(slice(2 * i, 2 * i + 2), "labels") for i in range(5)}
        files["test_batch"] = entry(PARTS["test"], "labels")
        files[meta] = {"label_names": [f"thing {i}" for i in range(10)]}
    else:
        published, folder, meta = datasets.CIFAR100, "cifar-100-python", "meta"
        files = {split: entry(part, "fine_labels") for split, part in PARTS.items()}
        for content in files.values():
            content["coarse_labels"] = [0] * len(content["fine_labels"])
        coarse = ["coarse thing"] * 20
        files[meta] = {
            "fine_label_names": [f"thing {i}" for i in range(100)],
            "coarse_label_names": coarse,
        }
    (tmp_path / folder).mkdir()
    sums = {}
    for name, content in files.items():
        (tmp_path / folder / name).write_bytes(pickle.dumps(content, protocol=2))
        sums[name] = sum_of(tmp_path / folder / name)
    for part in (published.train_list, published.test_list):
        assert {name for name, _ in part} <= set(files)
    assert published.meta["filename"] == meta
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(published, part, [[n, sums[n]] for n, _ in getattr(published, part)])
    monkeypatch.setattr(published, "meta", {**published.meta, "md5": sums[meta]})
    return request.param  # type: ignore[no-any-return]


def folder_of(root: Path) -> Path:
    (folder,) = root.glob("cifar-*")
    return folder


def test_images_labels_and_names_are_those_of_the_files(
    kind: type[CIFAR10], tmp_path: Path
) -> None:
    data = kind(root=str(tmp_path))
    num_classes = 10 if kind is CIFAR10 else 100
    assert data.class_names == tuple(f"thing {i}" for i in range(num_classes))
    assert (data.image_shape, data.num_classes) == ((3, 32, 32), num_classes)
    for split, part in PARTS.items():
        images, labels = next(data.reference(split))
        assert np.array_equal(images.numpy(), PIXELS[part])
        assert labels is not None
        assert labels.tolist() == LABELS[part].tolist()


def test_the_images_can_be_made_smaller(kind: type[CIFAR10], tmp_path: Path) -> None:
    assert kind(root=tmp_path, size=16).image_shape == (3, 16, 16)


def test_both_keep_the_contract(kind: type[CIFAR10], tmp_path: Path) -> None:
    check_datamodule(kind(root=tmp_path, batch_size=3))


def test_missing_files_name_the_folder_and_the_flag(tmp_path: Path) -> None:
    message = "No CIFAR100 files in .*cifar-100-python .*--data.download true.*--data.root"
    with pytest.raises(FileNotFoundError, match=message):
        CIFAR100(root=tmp_path).setup()


def test_one_missing_file_is_named(kind: type[CIFAR10], tmp_path: Path) -> None:
    meta = next(folder_of(tmp_path).glob("*meta"))
    meta.unlink()
    with pytest.raises(ValueError, match=rf"{meta.name} is missing or .*--data.download true"):
        kind(root=tmp_path).setup()


class Attack:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_no_file_with_another_md5_sum_is_unpickled(kind: type[CIFAR10], tmp_path: Path) -> None:
    mark = tmp_path / "the attack was run"
    attack = pickle.dumps(Attack(mark))
    pickle.loads(attack)
    assert mark.exists()
    mark.unlink()
    for file in folder_of(tmp_path).iterdir():
        before = file.read_bytes()
        file.write_bytes(attack)
        with pytest.raises(ValueError, match=rf"{file.name} is missing or not the published"):
            kind(root=tmp_path).setup()
        with pytest.raises(RuntimeError, match="corrupted"):
            getattr(datasets, kind.stored_as)(str(tmp_path), train=True)
        assert not mark.exists()
        file.write_bytes(before)
    kind(root=tmp_path).setup()


def test_an_archive_that_is_there_is_unpacked_over_damaged_files(
    kind: type[CIFAR10], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, folder = getattr(datasets, kind.stored_as), folder_of(tmp_path)
    archive = tmp_path / published.filename
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, arcname=folder.name)
    monkeypatch.setattr(published, "tgz_md5", sum_of(archive))
    next(folder.glob("*meta")).write_bytes(b"damaged")
    next(folder.glob("test*")).unlink()
    kind(root=tmp_path).prepare_data()
    with pytest.raises(ValueError, match="meta is missing or not"):
        kind(root=tmp_path).setup()
    data = kind(root=tmp_path, download=True)
    assert data.num_images("test") == 4
    archive.unlink()
    data.prepare_data()  # nothing is wrong any more, so nothing is fetched


def test_a_failed_download_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(datasets.utils, "download_url", no_network)
    with pytest.raises(ValueError, match=r"CIFAR10 could not be downloaded to .*-py: File not"):
        CIFAR10(root=tmp_path, download=True).prepare_data()


def test_a_users_own_variant_reads_the_same_files(kind: type[CIFAR10], tmp_path: Path) -> None:
    variant = type("Variant", (kind,), {})
    assert variant(root=tmp_path).num_images("train") == 10
