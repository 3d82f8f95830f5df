"""ImageNet from a tree and from archives of torchvision's layout, made here."""

import hashlib
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision.datasets import imagenet

from imgsynth.data import ImageNet
from imgsynth.describe import describe
from imgsynth.testing import check_datamodule

# From the list of ImageNet: two cranes, and two cardigans but for the case.
WORDS = {
    "n01440764": ("tench", "Tinca tinca"),
    "n01443537": ("goldfish", "Carassius auratus"),
    "n02012849": ("crane",),
    "n02113186": ("Cardigan", "Cardigan Welsh corgi"),
    "n02963159": ("cardigan",),
    "n03126707": ("crane",),
}
NAMES = (
    "tench", "goldfish", "crane (n02012849)", "Cardigan (n02113186)", "cardigan (n02963159)",
    "crane (n03126707)",
)  # fmt: skip
WNIDS = list(WORDS)
VAL = [WNIDS[i] for i in (5, 0, 4, 3, 2, 5)]  # none of n01443537
ARCHIVES = {split: name for split, (name, _) in imagenet.ARCHIVE_META.items()}


def colour(number: int) -> tuple[int, int, int]:
    return 12 * number, 255 - 10 * number, 60


def picture(number: int) -> bytes:
    """One colour all over, in one of the forms that ImageNet has, all called .JPEG."""
    kind, mode = {1: ("PNG", "RGB"), 2: ("JPEG", "L"), 3: ("JPEG", "CMYK")}.get(
        number, ("JPEG", "RGB")
    )
    image = Image.new("RGB", (24 + number, 40 - number), colour(number)).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def paths() -> dict[str, int]:
    """Return all images, and their numbers."""
    train = [f"train/{wnid}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in (10, 9)]
    val = [f"val/{wnid}/ILSVRC2012_val_{i + 1:08d}.JPEG" for i, wnid in enumerate(VAL)]
    return {path: number for number, path in enumerate([*train, *val])}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "imagenet"
    for path, number in paths().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(number))
    return root


@pytest.fixture
def root(tree: Path) -> Path:
    torch.save((WORDS, VAL), tree / "meta.bin")
    return tree


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def devkit() -> dict[str, bytes]:
    """Return what the archive of lists holds: classes in another order, and one above them."""
    order = [3, 0, 5, 1, 4, 2]
    above = (7, "n00001740", "entity", "that which is", 6, np.arange(1, 7), 1, 0)
    rows = [
        (i + 1, WNIDS[k], ", ".join(WORDS[WNIDS[k]]), "a thing", 0, np.zeros(0), 0, 2)
        for i, k in enumerate(order)
    ]
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")
    fields += ("wordnet_height", "num_train_images")
    synsets = np.zeros((len(rows) + 1, 1), [(name, object) for name in fields])
    for i, row in enumerate([*rows, above]):
        synsets[i, 0] = row
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{order.index(WNIDS.index(wnid)) + 1}\n" for wnid in VAL)
    folder = "ILSVRC2012_devkit_t12/data"
    return {
        f"{folder}/meta.mat": meta.getvalue(),
        f"{folder}/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }


def publish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision take what is there for the published archives."""
    sums = {
        split: (name, hashlib.md5((folder / name).read_bytes()).hexdigest())
        for split, name in ARCHIVES.items()
    }
    monkeypatch.setattr(imagenet, "ARCHIVE_META", sums)


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "archives"
    folder.mkdir()
    with tarfile.open(folder / ARCHIVES["train"], "w") as outer:
        for wnid in WNIDS:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as inner:
                for path, number in paths().items():
                    if path.startswith(f"train/{wnid}"):
                        add(inner, path.rpartition("/")[2], picture(number))
            add(outer, f"{wnid}.tar", packed.getvalue())
    with tarfile.open(folder / ARCHIVES["val"], "w") as tar:
        for path, number in reversed(paths().items()):
            if path.startswith("val"):
                add(tar, path.rpartition("/")[2], picture(number))
    with tarfile.open(folder / ARCHIVES["devkit"], "w:gz") as tar:
        for name, content in devkit().items():
            add(tar, name, content)
    publish(folder, monkeypatch)
    return folder


def test_splits_labels_and_order_are_torchvisions(root: Path) -> None:
    data = ImageNet(root, size=8)
    assert (data.splits, data.image_shape, data.num_classes) == (("train", "val"), (3, 8, 8), 6)
    for split in data.splits:
        stored = datasets.ImageNet(str(root), split=split)
        # It numbers the folders there are; in val one is missing.
        wnids = [stored.wnids[target] for target in stored.targets]
        _, labels = next(data.reference(split, 100))
        assert labels is not None
        assert [WNIDS[label] for label in labels] == wnids
        files = [str(Path(path).relative_to(root)) for path, _ in stored.samples]
        assert data.files(split) == files
    assert data.class_counts == (2,) * 6


def test_images_are_those_of_the_files_in_any_of_their_forms(root: Path) -> None:
    data = ImageNet(root, size=8)
    numbers = paths()
    for split in data.splits:
        images, _ = next(data.reference(split, 100))
        for path, image in zip(data.files(split), images, strict=True):
            number = numbers[path]
            wanted = torch.tensor(colour(number)).double()
            if number == 2:  # gray: the luma of ITU-R 601
                wanted = (wanted @ torch.tensor([0.299, 0.587, 0.114]).double()).repeat(3)
            assert (image.double() - wanted[:, None, None]).abs().max() < 4, path


def test_it_keeps_the_contract(root: Path) -> None:
    check_datamodule(ImageNet(root, size=8, batch_size=3))


def test_classes_have_their_first_english_name_and_equal_ones_their_number(root: Path) -> None:
    assert ImageNet(root).class_names == NAMES


def test_without_the_list_classes_are_called_by_their_folders(tree: Path) -> None:
    assert ImageNet(tree).class_names == tuple(WNIDS)


def test_a_list_that_lacks_a_class_leaves_it_its_folders_name(tree: Path) -> None:
    torch.save(({"n01440764": WORDS["n01440764"]}, VAL), tree / "meta.bin")
    assert ImageNet(tree).class_names == ("tench", *WNIDS[1:])


def test_what_else_lies_in_the_folder_is_not_used(root: Path) -> None:
    expected = ImageNet(root, size=8).fingerprint_of("val")
    for other in ("test/a.JPEG", "preview.png", "samples/deep/b.JPEG", "trainings/n0/c.JPEG"):
        (root / other).parent.mkdir(parents=True, exist_ok=True)
        (root / other).write_bytes(picture(0))
    (root / "Annotations" / "n01440764").mkdir(parents=True)
    (root / "val" / "n01443537").mkdir()  # no image of a class to validate on
    data = ImageNet(root, size=8)
    assert (data.splits, data.class_names) == (("train", "val"), NAMES)
    assert (data.num_images("train"), data.num_images("val")) == (12, 6)
    assert data.fingerprint_of("val") == expected


def test_one_class_alone_is_a_class(root: Path) -> None:
    for split in ("train", "val"):
        for folder in (root / split).iterdir():
            if folder.name != WNIDS[0]:
                shutil.rmtree(folder)
    data = ImageNet(root, size=8)
    assert (data.class_names, data.class_counts) == (("tench",), (2,))


def test_it_is_described_by_what_rebuilds_it(root: Path) -> None:
    data = ImageNet(root, size=8, fit="stretch")
    again = ImageNet(**describe(data)["init_args"])
    assert again.rule == data.rule
    assert again.fingerprint_of("train") == data.fingerprint_of("train")


@pytest.mark.parametrize(
    "option", [{"val_fraction": 0.1}, {"table": "t.csv"}, {"class_depth": 0}, {"channels": 1}]
)
def test_what_the_data_set_settles_cannot_be_set_without_effect(option: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(option))):
        ImageNet("anywhere", **option)


# -- archives ---------------------------------------------------------------------------------


def test_archives_give_the_same_as_the_tree(root: Path, archives: Path) -> None:
    for split in ("train", "val"):  # what an interrupted process left
        left = archives / f"{split}.part" / WNIDS[0] / "left.JPEG"
        left.parent.mkdir(parents=True)
        left.write_bytes(picture(0))
    data, same = ImageNet(archives, size=8, unpack=True), ImageNet(root, size=8)
    assert data.image_shape == (3, 8, 8)  # which asks for the images, so it unpacks
    for split in data.splits:
        assert data.files(split) == same.files(split)
        assert data.fingerprint_of(split) == same.fingerprint_of(split)
    assert data.class_names == NAMES
    stored, written = (torch.load(r / "meta.bin", weights_only=True) for r in (archives, root))
    assert stored == written


@pytest.mark.parametrize("asked", ["splits", "names", "class_names"])
def test_whatever_is_asked_first_unpacks(archives: Path, asked: str) -> None:
    assert len(getattr(ImageNet(archives, unpack=True), asked)) in {2, 6}
    assert (archives / "val").is_dir()


def test_only_what_is_missing_is_unpacked(archives: Path) -> None:
    ImageNet(archives, size=8, unpack=True).prepare_data()
    expected = ImageNet(archives, size=8).fingerprint_of("val")
    shutil.rmtree(archives / "val")
    for split in ("train", "devkit"):
        (archives / ARCHIVES[split]).unlink()
    data = ImageNet(archives, size=8, unpack=True)
    assert data.fingerprint_of("val") == expected
    (archives / ARCHIVES["val"]).unlink()
    ImageNet(archives, size=8, unpack=True).prepare_data()  # nothing is missing


@pytest.mark.parametrize("split", ["train", "val", "devkit"])
@pytest.mark.parametrize("how", ["missing", "another", "broken"])
def test_a_wrong_archive_is_one_clear_error_and_can_be_replaced(
    archives: Path, monkeypatch: pytest.MonkeyPatch, split: str, how: str
) -> None:
    archive = archives / ARCHIVES[split]
    before = archive.read_bytes()
    if how == "missing":
        archive.unlink()
    else:
        archive.write_bytes(before[: len(before) * 2 // 3])
    message = rf"ImageNet could not be unpacked in .*archives: .*{archive.name} is not present"
    if how == "broken":  # published so
        message = "ImageNet could not be unpacked in .*archives: "
        publish(archives, monkeypatch)
    with pytest.raises(ValueError, match=message):
        ImageNet(archives, size=8, unpack=True).prepare_data()
    if split != "devkit":  # nothing that would be taken for all of it
        assert not (archives / split).exists()
    archive.write_bytes(before)
    publish(archives, monkeypatch)
    assert ImageNet(archives, size=8, unpack=True).class_names == NAMES


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_folder_names_the_ways_to_get_it(root: Path, split: str) -> None:
    shutil.rmtree(root / split)
    message = rf"No folder .*imagenet/{split} .*--data\.root, or .* add --data\.unpack true"
    for ask in (ImageNet.prepare_data, ImageNet.setup, lambda data: data.splits):
        with pytest.raises(FileNotFoundError, match=message):
            ask(ImageNet(root))


def test_a_missing_root_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No folder .*typo/train"):
        ImageNet(tmp_path / "typo", unpack=True).prepare_data()
    assert not (tmp_path / "typo").exists()


def test_images_beside_the_folders_of_classes_are_refused(root: Path) -> None:
    for path in (root / "val").rglob("*.JPEG"):
        path.rename(root / "val" / path.name)
    with pytest.raises(ValueError, match=r"imagenet/val has images outside the folders of classes"):
        ImageNet(root).prepare_data()
    shutil.rmtree(root / "val")
    (root / "val").mkdir()
    with pytest.raises(ValueError, match=r"imagenet/val has no images in the folders of classes"):
        ImageNet(root).prepare_data()


def test_a_class_without_images_to_train_on_is_refused(root: Path) -> None:
    (root / "train" / "n09999999").mkdir()
    with pytest.raises(ValueError, match=r"class folder 'n09999999' .* has no images; remove it"):
        ImageNet(root).prepare_data()


class Attack:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("content", ["empty", "text", "truncated", "attack"])
def test_a_broken_list_of_names_is_named_and_runs_nothing(
    root: Path, tmp_path: Path, content: str
) -> None:
    file, mark = root / "meta.bin", tmp_path / "the attack was run"
    if content == "attack":
        torch.save((Attack(mark), VAL), file)
        torch.load(file, weights_only=False)
        assert mark.exists()
        mark.unlink()
    else:
        whole = file.read_bytes()
        file.write_bytes({"empty": b"", "text": b"tench", "truncated": whole[:-40]}[content])
    with pytest.raises(ValueError, match=r"meta\.bin is broken, which has the names"):
        _ = ImageNet(root).class_names
    assert not mark.exists()
