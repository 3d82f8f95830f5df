"""MNIST and Fashion-MNIST from files of torchvision's layout, made here."""

import struct
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import VisionDataset
from torchvision.datasets import mnist as stored

from imgsynth.data import MNIST, FashionMNIST
from imgsynth.testing import check_datamodule

PIXELS = np.random.default_rng(2).integers(0, 256, (14, 28, 28), dtype=np.uint8)
LABELS = (np.arange(14) % 10).astype(np.uint8)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write the format of the MNIST page: two zeros, type 8 (uint8), rank, sizes, data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


@pytest.fixture(params=[MNIST, FashionMNIST])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> type[MNIST]:
    raw = tmp_path / request.param.__name__ / "raw"
    for name, part in (("train", slice(0, 10)), ("t10k", slice(10, 14))):
        write_idx(raw / f"{name}-images-idx3-ubyte", PIXELS[part])
        write_idx(raw / f"{name}-labels-idx1-ubyte", LABELS[part])
    return request.param  # type: ignore[no-any-return]


def test_images_and_labels_are_those_of_the_files(kind: type[MNIST], tmp_path: Path) -> None:
    data = kind(root=tmp_path)
    for split, part in (("train", slice(0, 10)), ("test", slice(10, 14))):
        images, labels = next(data.reference(split))
        assert np.array_equal(images[:, 0].numpy(), PIXELS[part])
        assert labels is not None
        assert labels.tolist() == LABELS[part].tolist()
    assert (data.image_shape, data.num_classes) == ((1, 28, 28), 10)
    assert kind(root=str(tmp_path), size=32).image_shape == (1, 32, 32)


def test_both_keep_the_contract(kind: type[MNIST], tmp_path: Path) -> None:
    check_datamodule(kind(root=tmp_path, batch_size=3))


def test_the_class_names_are_in_the_order_of_the_labels() -> None:
    assert FashionMNIST.names == tuple(stored.FashionMNIST.classes)
    assert [name[0] for name in stored.MNIST.classes] == list(MNIST.names)


def test_missing_files_name_the_folder_and_the_flag(tmp_path: Path) -> None:
    message = "No FashionMNIST files in .*FashionMNIST/raw .*--data.download true"
    with pytest.raises(FileNotFoundError, match=message):
        FashionMNIST(root=tmp_path).setup()


def test_a_broken_file_is_named(kind: type[MNIST], tmp_path: Path) -> None:
    raw = tmp_path / kind.__name__ / "raw"
    images = raw / "train-images-idx3-ubyte"
    for content in (images.read_bytes()[:5000], b"", b"\0\0\x0d\x03" + bytes(40)):
        images.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read .* delete them and fetch them again"):
            kind(root=tmp_path).setup()


def test_missing_labels_are_refused(kind: type[MNIST], tmp_path: Path) -> None:
    write_idx(tmp_path / kind.__name__ / "raw" / "train-labels-idx1-ubyte", LABELS[:9])
    with pytest.raises(ValueError, match=r"one label per image, shape \(10,\), got \(9,\)"):
        kind(root=tmp_path).setup()


def test_a_failed_download_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(self: VisionDataset) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(stored.MNIST, "download", no_network)
    with pytest.raises(ValueError, match=r"MNIST could not be downloaded to .*raw: Error downl"):
        MNIST(root=tmp_path, download=True).prepare_data()
    MNIST(root=tmp_path).prepare_data()


def test_a_users_own_variant_reads_the_same_files(kind: type[MNIST], tmp_path: Path) -> None:
    variant = type("Variant", (kind,), {})
    assert variant(root=tmp_path).num_images("train") == 10
