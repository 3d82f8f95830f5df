"""What is found in a folder, and what is said when nothing is."""

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgsynth.data import ImageFolder
from imgsynth.data import build as build_module
from imgsynth.data.scan import scan

REAL_SCANDIR = os.scandir


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


class Entries:
    """What ``os.scandir`` returns."""

    def __init__(self, entries: list[Any]) -> None:
        self.entries = entries

    def __enter__(self) -> Iterator[Any]:
        return iter(self.entries)

    def __exit__(self, *args: object) -> None:
        pass


def use_order(monkeypatch: pytest.MonkeyPatch, backwards: bool) -> None:
    monkeypatch.setattr(
        os,
        "scandir",
        lambda path: Entries(sorted(REAL_SCANDIR(path), key=lambda e: e.name, reverse=backwards)),
    )


def test_names_are_in_the_order_of_code_points_and_nested(tmp_path: Path) -> None:
    names = ["10.png", "9.png", "Z.png", "a-b/1.png", "a.png", "a/1.png", "a/b/c/2.png", "é.png"]
    assert scan(make(tmp_path, *reversed(names))).names == names


def test_the_order_of_the_disk_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "m/1.png", "m/2.png", "z/3.png", "z/deep/4.png")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    outside = make(tmp_path.parent / f"{tmp_path.name}-outside", "5.png")
    for link in "qp":
        (tmp_path / link).symlink_to(outside)
    listings = [scan(tmp_path)]
    for backwards in (False, True):
        use_order(monkeypatch, backwards)
        listings.append(scan(tmp_path))
    # The folder itself counts, not the link to it; of two links the first.
    expected = ["m/1.png", "m/2.png", "p/5.png", "z/3.png", "z/deep/4.png"]
    assert [listing.names for listing in listings] == [expected] * 3


def test_sizes_and_times_are_those_of_each_file(tmp_path: Path) -> None:
    names = ["b/1.png", "a/2.png", "c.png"]
    make(tmp_path, *names)
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * (i + 1))
        os.utime(tmp_path / name, ns=(0, 1_700_000_000_123_456_789 + i))
    listing = scan(tmp_path)
    assert listing.names == ["a/2.png", "b/1.png", "c.png"]
    assert (listing.sizes.dtype, listing.mtimes.dtype) == (np.int64, np.int64)
    stats = [Path(listing.path(i)).stat() for i in range(len(listing))]
    assert listing.sizes.tolist() == [s.st_size for s in stats] == [2, 1, 3]
    assert listing.mtimes.tolist() == [s.st_mtime_ns for s in stats]


def test_some_of_the_files_keep_the_order_of_names(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.png", "c.png", "d.png")
    (tmp_path / "d.png").write_bytes(b"1234")
    some = scan(tmp_path).at(np.array([3, 0]))
    assert some.names == ["a.png", "d.png"]
    assert some.sizes.tolist() == [0, 4]
    assert Path(some.path(1)) == tmp_path / "d.png"


def test_suffixes_count_in_any_case_and_other_files_are_counted(tmp_path: Path) -> None:
    images = ["a.JPEG", "b.Png", "c.tiff", "d.npy"]
    others = ["notes.txt", "archive.tar.gz", "png", "e.png.part", "deep/labels.csv"]
    listing = scan(make(tmp_path, *images, *others))
    assert (listing.names, sum(listing.others.values())) == (images, len(others))


def test_what_systems_leave_behind_does_not_count(tmp_path: Path) -> None:
    hidden = [".DS_Store", "._a.png", ".thumbnails/a.png", "x/.b.png", "__MACOSX/x/a.png"]
    listing = scan(make(tmp_path, "a.png", "x/b.png", *hidden))
    assert (listing.names, sum(listing.others.values()), listing.empty) == (
        ["a.png", "x/b.png"],
        0,
        (),
    )


def test_folders_without_images_are_listed_unless_there_are_some_further_down(
    tmp_path: Path,
) -> None:
    make(tmp_path, "full/1.png", "way/to/2.png", "texts/a.txt", "hollow/below/b.txt")
    (tmp_path / "way" / "bare").mkdir()
    empty = scan(tmp_path).empty
    assert empty == ("hollow", "hollow/below", "texts", "way/bare")


# -- links ------------------------------------------------------------------------------------


def test_links_are_followed_and_a_loop_ends(tmp_path: Path) -> None:
    root = make(tmp_path / "in", "cat/1.png", "dog/2.png")
    pool = make(tmp_path / "pool", "birds/3.png", "4.png")
    (root / "bird").symlink_to(pool / "birds")
    (root / "5.png").symlink_to(pool / "4.png")
    (root / "cat" / "up").symlink_to(root)
    (pool / "birds" / "all").symlink_to(pool)
    names = ["5.png", "bird/3.png", "bird/all/4.png", "cat/1.png", "dog/2.png"]
    assert scan(root).names == names
    (tmp_path / "link").symlink_to(root)
    assert scan(tmp_path / "link").names == names


def test_a_link_that_leads_nowhere_has_no_size_and_no_link_ends_the_scan(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    (tmp_path / "through.png").symlink_to(tmp_path / "a.png" / "below")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    listing = scan(tmp_path)
    assert listing.names == ["a.png", "gone.png", "itself.png", "through.png"]
    assert listing.sizes.tolist() == [0, -1, -1, -1]
    assert listing.mtimes.tolist()[1:] == [0, 0, 0]
    assert sum(listing.others.values()) == 1


def test_a_link_to_nothing_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"1 of the 2 images .*'gone\.png' .*No such file"):
        ImageFolder(tmp_path, size=4, channels=1, bits=8, batch_size=1).setup()


# -- names ------------------------------------------------------------------------------------


def test_any_name_survives_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "in"
    odd = [b"two words/a b.png", b"line\nbreak/c\n.png", b"latin-\xe9\xff/d\xfc.png", b"e,\"'.png"]
    for i, name in enumerate(odd):
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 10 * i).save(path)
        except OSError:
            pytest.skip("this disk allows UTF-8 only")
    options: dict[str, Any] = {"class_depth": 0, "cache": tmp_path / "cache", "batch_size": 1}
    files = ImageFolder(root, **options).files()
    assert sorted(map(os.fsencode, files)) == sorted(odd)
    # What is known of the others is read from the cache when one file is new.
    Image.new("L", (4, 4), 200).save(root / "new.png")
    decoded: list[str] = []
    monkeypatch.setattr(build_module, "_COMPARED", 0)
    decode = build_module.decode
    monkeypatch.setattr(build_module, "decode", lambda path: decoded.append(path) or decode(path))
    data = ImageFolder(root, **options)
    assert data.files() == sorted([*files, "new.png"])
    images, _ = next(data.reference("train", 100))
    shades = {os.fsencode(f): int(x[0, 0, 0]) for f, x in zip(data.files(), images, strict=True)}
    assert shades == {name: 10 * i for i, name in enumerate(odd)} | {b"new.png": 200}
    first = data.files()[0]  # decoded for its shape
    assert {Path(path).name for path in decoded} == {Path(first).name, "new.png"}


# -- errors -----------------------------------------------------------------------------------


def test_a_folder_without_images_says_what_images_are(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "b/c.csv")
    message = r"holds no images \(2 other files\); images end in \.bmp \.gif \.jpeg \.jpg"
    with pytest.raises(ValueError, match=message):
        scan(tmp_path)


def test_a_missing_folder_and_a_file_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make(tmp_path, "a.png"))
    where = rf"looked for {tmp_path}"
    with pytest.raises(FileNotFoundError, match=rf"The folder gone does not exist \({where}/gone"):
        scan("gone")
    with pytest.raises(FileNotFoundError, match=rf"The folder a\.png is a file \({where}/a\.png"):
        scan("a.png")


class Secret:
    """An entry of a folder that may be listed, but whose entries may not be asked for."""

    name = "secret"

    def is_dir(self) -> bool:
        raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("when", ["opening", "asking"])
def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    make(tmp_path, "a.png", "closed/b.png")

    def scandir(path: str) -> Any:
        if "closed" not in path:
            return REAL_SCANDIR(path)
        if when == "opening":
            raise PermissionError(13, "Permission denied")
        return Entries([Secret()])

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(OSError, match=r"folder .*/closed cannot be read \(Permission denied\); "):
        scan(tmp_path)


# -- memory -----------------------------------------------------------------------------------


def test_a_listing_of_a_hundred_thousand_takes_less_than_25_megabytes(tmp_path: Path) -> None:
    num = 2_000
    for part in ("train", "val"):
        make(tmp_path, *(f"{part}/n01440764/n01440764_{i:05d}.JPEG" for i in range(num // 2)))
    scan(tmp_path)  # what is made once
    tracemalloc.start()
    try:
        listing = scan(tmp_path)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(listing) == num
    assert kept * 100_000 / num < 25e6
    assert most * 100_000 / num < 50e6  # while it is made; the entries of os.scandir take 80
