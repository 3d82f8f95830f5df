"""Splits and classes from names, folders, tables and lists."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from imgsynth.data.organise import Organisation, Organiser

HERE = Path("pictures")
FLAT = ["a.png", "b.png", "c.png"]
CLASSES = ["cat/1.png", "cat/2.png", "dog/1.png", "dog/x/2.png"]


def named(organised: Organisation, names: list[str]) -> dict[str, list[str]]:
    return {s: [names[i] for i in places] for s, places in organised.splits.items()}


def classes(organised: Organisation) -> list[str]:
    assert organised.labels is not None
    return [organised.classes[i] if i >= 0 else "-" for i in organised.labels]


def test_images_in_one_folder_are_unlabelled_and_trained_on() -> None:
    for names in (FLAT, ["all/" + name for name in FLAT]):
        organised = Organiser(HERE)(names)
        assert named(organised, names) == {"train": names}
        assert (organised.labels, organised.classes) == (None, ())


def test_the_first_folder_is_the_class() -> None:
    organised = Organiser(HERE)(CLASSES)
    assert organised.classes == ("cat", "dog")
    assert classes(organised) == ["cat", "cat", "dog", "dog"]


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(0, None), (1, ["a", "a", "b"]), (2, ["a/x", "a/y", "b/x"]), (-1, ["a/x", "a/y/z", "b/x"])],
)
def test_the_depth_says_which_folders_name_the_class(depth: int, expected: list[str]) -> None:
    organised = Organiser(HERE, class_depth=depth)(["a/x/1.png", "a/y/z/1.png", "b/x/1.png"])
    assert (None if organised.labels is None else classes(organised)) == expected


def test_folders_called_train_and_test_are_splits_and_no_classes() -> None:
    names = ["test/cat/3.png", "train/cat/1.png", "train/dog/2.png", "valid/dog/4.png"]
    organised = Organiser(HERE)(names)
    assert named(organised, names) == {
        "train": names[1:3], "val": names[3:], "test": names[:1],
    }  # fmt: skip
    assert classes(organised) == ["cat", "cat", "dog", "dog"]
    capitals = sorted(name.capitalize() for name in names)
    assert classes(Organiser(HERE)(capitals)) == classes(organised)
    others = [*names, "extra/5.png"]
    with pytest.raises(ValueError, match="holds test and train and valid, and also 'extra'"):
        Organiser(HERE)(others)
    assert Organiser(HERE, class_depth=1)(others).classes == ("extra", "test", "train", "valid")


def test_split_by_names_folders_or_lists(tmp_path: Path) -> None:
    names = ["testA/1.png", "trainA/2.png", "trainB/3.png"]
    organised = Organiser(HERE, split_by={"train": "trainA", "test": "testA/"})(names)
    assert named(organised, names) == {"train": names[1:2], "test": names[:1]}
    (tmp_path / "held.txt").write_text("2.png\n\ndog/1.png\n")
    parts = {"test": str(tmp_path / "held.txt")}
    organised = Organiser(HERE, split_by=parts)(
        ["cat/1.png", "cat/2.png", "dog/1.png", "dog/3.png"]
    )
    assert [p.tolist() for p in organised.splits.values()] == [[0, 3], [1, 2]]
    assert classes(organised) == ["cat", "cat", "dog", "dog"]


def test_a_ratio_keeps_the_shares_of_the_classes_and_is_stable() -> None:
    names = sorted([f"cat/{i}.png" for i in range(60)] + [f"dog/{i}.png" for i in range(40)])
    split = Organiser(HERE, test_fraction=0.2, val_fraction=0.1)
    found = named(split(names), names)
    counts = {s: Counter(n.partition("/")[0] for n in files) for s, files in found.items()}
    assert counts["test"] == {"cat": 12, "dog": 8}
    assert counts["val"] == {"cat": 6, "dog": 4}
    assert sorted(n for files in found.values() for n in files) == names
    assert found == named(split(names), names)
    more = sorted([*names, "cat/new.png"])
    moved = set(found["test"]) ^ set(named(split(more), more)["test"])
    assert len(moved) <= 3
    assert found["test"] != names[:20]


def test_a_table_gives_labels_and_splits(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("file,label,split\n./a.png,9,train\nb,10,test\nsub/c.png,10,train\n")
    names = ["a.png", "sub/b.png", "sub/c.png"]
    organised = Organiser(HERE, table)(names)
    assert organised.classes == ("9", "10")  # as numbers, not as text
    assert classes(organised) == ["9", "10", "10"]
    assert named(organised, names) == {"train": [names[0], names[2]], "test": [names[1]]}
    table.write_text("file,label\na.png,x\nsub/b.png,y\n")
    organised = Organiser(HERE, table, allow_unlisted=True)(names)
    assert named(organised, names) == {"train": names[:2]}
    assert classes(organised) == ["x", "y", "-"]


def test_a_fraction_is_taken_of_what_is_trained_on() -> None:
    names = [f"test/{i}.png" for i in range(3)] + [f"train/{i}.png" for i in range(10)]
    found = named(Organiser(HERE, val_fraction=0.2)(names), names)
    assert found["test"] == names[:3]
    assert [len(found[split]) for split in ("train", "val")] == [8, 2]


def test_a_table_of_labels_leaves_the_splits_to_the_folders(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,label\ntest/a.png,x\ntrain/b.png,x\ntrain/c.png,y\n")
    names = ["test/a.png", "train/b.png", "train/c.png"]
    organised = Organiser(HERE, tmp_path / "t.csv")(names)
    assert named(organised, names) == {"train": names[1:], "test": names[:1]}
    assert classes(organised) == ["x", "x", "y"]


def test_what_the_table_leaves_out_is_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,label\na.png,x\nb.png,y\n")
    (tmp_path / "test.txt").write_text("a.png\n")
    parts = {"test": str(tmp_path / "test.txt"), "train": str(tmp_path / "train.txt")}
    (tmp_path / "train.txt").write_text("b.png\n")
    options: dict[str, Any] = {"table": tmp_path / "t.csv", "allow_unlisted": True}
    with pytest.raises(ValueError, match="class 'x' has images in test, but none to train on"):
        Organiser(HERE, split_by=parts, **options)(FLAT)
    (tmp_path / "t.csv").write_text("file,label\na.png,x\nb.png,x\n")
    del parts["train"]
    organised = Organiser(HERE, split_by=parts, **options)(FLAT)
    assert named(organised, FLAT) == {"train": ["b.png"], "test": ["a.png"]}


@pytest.mark.parametrize(
    ("names", "empty"),
    [
        (["train/a/1.png", "train/b/2.png", "val/a/3.png"], ["val/b"]),
        (["train/a/1.png", "train/b/2.png"], ["val", "logs"]),
        (["cat/1.png", "dog/x/2.png"], ["dog/y"]),
    ],
)
def test_a_folder_may_be_empty_if_its_class_is_not(names: list[str], empty: list[str]) -> None:
    assert len(Organiser(HERE)(names, empty).classes) == 2


def test_the_name_of_a_single_class_may_be_given() -> None:
    names = ["cat/1.png", "cat/2.png"]
    assert Organiser(HERE, class_names=("cat",))(names).classes == ("cat",)


def test_class_names_fix_the_order() -> None:
    organised = Organiser(HERE, class_names=("dog", "cat", "cow"))(CLASSES, empty=["cow"])
    assert organised.labels is not None
    assert organised.labels.tolist() == [1, 1, 0, 0]
    assert organised.classes == ("dog", "cat", "cow")


@pytest.mark.parametrize(
    ("options", "names", "empty", "message"),
    [
        ({}, ["a.png", "cat/b.png"], (), "both directly and in folders .* class_depth=0"),
        ({}, CLASSES, ["cow", "cat/z"], "class folder 'cow' in pictures has no images; remove it"),
        ({}, CLASSES, ["cow", "emu"], r"'cow' in pictures has no images \(2 folders have none\)"),
        ({}, ["test/cat/1.png", "train/cat/1.png"], ["train/cow"], "class folder 'cow'"),
        ({}, ["Cat/a.png", "cat /b.png"], (), "class names 'Cat' and 'cat ' differ in case or"),
        ({}, ["caf\u00e9/a.png", "cafe\u0301/b.png"], (), "give each class one name"),
        ({"class_depth": 2}, CLASSES, (), "class_depth=2: 3 images are in fewer .* 'cat/1.png'"),
        ({"class_names": ("cat",)}, CLASSES, (), "has the class 'dog', which is not among"),
        ({"class_names": ("cat",)}, FLAT, (), "class_names were given, but nothing in pictures"),
        ({"split_by": {"test": "held"}}, FLAT, (), "'held', which is neither a folder with images"),
        ({"split_by": {"dev": "cat"}}, CLASSES, (), "split_by names 'dev'; expected train, val"),
        ({"split_by": {"train": "cat", "test": "cat"}}, CLASSES, (), "splits train and test"),
        ({"split_by": {"test": "cat"}, "test_fraction": 0.5, "class_depth": 0}, CLASSES, (),
         "split 'test' is given already; leave test_fraction"),
        ({"split_by": {"test": "cat"}, "class_depth": 0}, ["cat/a.png"], (), "no image is left to"),
        ({"split_by": {"train": "train", "test": "test"}},
         ["test/dog/1.png", "train/cat/1.png", "train/cow/1.png"], (),
         "class 'dog' has images in test, but none to train on"),
        ({"split_by": {"test": __file__}}, FLAT, (), "test_organise.py names .* not there"),
        ({"test_fraction": 0.1}, FLAT, (), "of 3 images leave none for test"),
        ({"test_fraction": 0.9}, FLAT, (), "of 3 images leave none for train"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_refused(
    options: dict[str, Any], names: list[str], empty: list[str], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Organiser(HERE, **options)(names, empty)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\nb.png,y\n", "1 of the 3 images in pictures have no row .* 'c.png'"),
        ("file,label\na.png,x\nb.png,y\nc.png,y\nd.png,y\n", "names 1 files that are not there"),
        ("file,label\na.png,x\na,y\nb.png,x\nc.png,x\n", "names 'a.png' twice, .* as 'a' with"),
        ("file,split\na.png,train\nb.png,dev\nc.png,test\n", "has the split 'dev'; expected one"),
    ],
)
def test_a_table_must_fit_the_folder(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        Organiser(HERE, tmp_path / "t.csv")(FLAT)


def test_a_short_name_that_two_files_have_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,label\n1.png,x\n")
    with pytest.raises(ValueError, match=r"not there, such as '1\.png'; name each by its path"):
        Organiser(HERE, tmp_path / "t.csv", allow_unlisted=True)(CLASSES)


def test_wrong_settings_are_refused_at_construction(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="class_depth must be at least -1, got -2"):
        Organiser(HERE, class_depth=-2)
    with pytest.raises(ValueError, match=r"split_by must say .* got 'held\.txt'"):
        Organiser(HERE, split_by="held.txt")  # type: ignore[arg-type]
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"none\.txt names no image"):
        Organiser(HERE, split_by={"test": str(tmp_path / "none.txt")})(FLAT)
