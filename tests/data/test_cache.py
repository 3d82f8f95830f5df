"""The decoded cache: what is in it, when it is built again, and what may go wrong meanwhile."""

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from imgsynth.data import build as module
from imgsynth.data import cache as store
from imgsynth.data.build import cached
from imgsynth.data.cache import Cache, key_of
from imgsynth.data.decode import UnusableImage, decode
from imgsynth.data.rule import Rule
from imgsynth.data.scan import scan
from imgsynth.data.source import hash_images

RULE = Rule((8, 8), channels=3, bits=8)
NUM = 20
SIZE = NUM * 3 * 8 * 8


def write(path: Path, seed: int, shape: tuple[int, ...] = (9, 12, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(NUM):
        write(tmp_path / "in" / f"{i % 2}" / f"{i:02d}.png", i)
    return tmp_path / "in"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded, as they are; none to compare."""
    names: list[str] = []
    monkeypatch.setattr(module, "_COMPARED", 0)

    def noted(path: str) -> torch.Tensor:
        names.append(Path(path).name)
        return decode(path)

    monkeypatch.setattr(module, "decode", noted)
    return names


def build(root: Path, rule: Rule = RULE, **options: Any) -> Cache:
    return cached(scan(root), rule, root.parent / "cache", **options)


def images(cache: Cache) -> torch.Tensor:
    return cache.images.fetch(torch.arange(len(cache.images)))["image"]


def folder_of(cache: Cache) -> Path:
    return cache.images.hold.about.parent  # type: ignore[attr-defined]


def expected(root: Path, rule: Rule = RULE) -> torch.Tensor:
    return torch.stack([rule.apply(decode(root / name)) for name in scan(root).names])


def test_it_holds_each_image_by_the_rule_in_the_order_of_names(root: Path) -> None:
    cache = build(root)
    assert cache.unusable == {}
    assert torch.equal(images(cache), expected(root))
    assert cache.images.hashes().tolist() == hash_images(expected(root)).tolist()
    labels = torch.tensor([7, 8])
    part = cache.source(torch.tensor([5, 2]), labels)
    batch = part.fetch(torch.tensor([1, 0]))
    assert torch.equal(batch["image"], expected(root)[[2, 5]])
    assert batch["label"].tolist() == [8, 7]
    assert part.hashes().tolist() == hash_images(expected(root)[[5, 2]]).tolist()


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 6), dtype=np.uint16)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "deep.png")
    cache = build(tmp_path / "in", Rule())
    assert images(cache).dtype == torch.uint16
    assert np.array_equal(images(cache)[0, 0].numpy(), pixels)
    assert cache.images.hashes().tolist() == hash_images(images(cache)).tolist()


def test_a_second_time_nothing_is_decoded(root: Path, decoded: list[str]) -> None:
    build(root)
    assert len(decoded) == NUM + 1  # the first one twice: it tells shape and type
    build(root)
    assert len(decoded) == NUM + 1


def test_a_changed_an_added_and_a_removed_file_are_noticed(root: Path, decoded: list[str]) -> None:
    first = build(root)
    write(root / "1" / "03.png", 99)
    write(root / "0" / "new.png", 98)
    (root / "0" / "04.png").unlink()
    decoded.clear()
    second = build(root)
    assert sorted(set(decoded)) == ["00.png", "03.png", "new.png"]  # 00 for shape and type
    assert torch.equal(images(second), expected(root))
    assert second.images.hashes().tolist() == hash_images(expected(root)).tolist()
    assert folder_of(first) != folder_of(second)


def test_a_file_of_the_same_size_that_was_written_again_is_noticed(root: Path) -> None:
    before = key_of(scan(root), RULE)
    file = root / "1" / "05.png"
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1))
    assert key_of(scan(root), RULE) != before
    listing = scan(root)
    listing.sizes[3] += 1
    assert key_of(listing, RULE) != key_of(scan(root), RULE)


@pytest.mark.parametrize(
    "other", [Rule((8, 8), "stretch", channels=3, bits=8), Rule((8, 8), channels=1, bits=8)]
)
def test_another_rule_has_another_cache(root: Path, other: Rule) -> None:
    assert not torch.equal(images(build(root, other)), images(build(root)))
    assert torch.equal(images(build(root, other)), expected(root, other))


def stop_after(monkeypatch: pytest.MonkeyPatch, num: int, stop: Callable[[], None]) -> None:
    count = iter(range(10**6))

    def until(path: str) -> torch.Tensor:
        if next(count) >= num:
            stop()
        return decode(path)

    monkeypatch.setattr(module, "decode", until)
    monkeypatch.setattr(module, "_AT_ONCE", 4)
    monkeypatch.setattr(module, "_A_TASK", 1)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupted_build_goes_on_where_it_was(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 13, interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(root)
    assert not [p for p in (root.parent / "cache").iterdir() if p.is_dir() and not p.suffix]
    names: list[str] = []
    monkeypatch.setattr(module, "decode", lambda path: names.append(path) or decode(path))
    assert torch.equal(images(build(root)), expected(root))
    assert 6 <= len(names) <= 13


def test_a_killed_build_leaves_nothing_that_is_trusted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = os.fork()
    if not child:
        stop_after(monkeypatch, 11, lambda: os.kill(os.getpid(), signal.SIGKILL))
        build(root)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (part,) = (root.parent / "cache").glob("*.part")
    with (part / "pixels.raw").open("r+b") as file:  # a page that never reached the disk
        file.write(bytes(3 * 8 * 8))
    assert torch.equal(images(build(root)), expected(root))


def test_of_two_at_once_one_decodes_and_the_other_waits(root: Path, decoded: list[str]) -> None:
    found: list[Cache] = []
    both = [threading.Thread(target=lambda: found.append(build(root))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(decoded) == NUM + 1
    assert torch.equal(images(found[0]), images(found[1]))


def test_when_one_of_two_processes_is_killed_the_other_goes_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, begin = os.pipe()
    child = os.fork()
    if not child:

        def killed() -> None:
            os.write(begin, b".")
            threading.Event().wait()

        stop_after(monkeypatch, 11, killed)
        build(root)
        os._exit(1)
    assert os.read(began, 1) == b"."  # it holds the lock, in the middle of its build
    found: list[Cache] = []
    waiting = threading.Thread(target=lambda: found.append(build(root)))
    waiting.start()
    waiting.join(0.7)
    assert not found
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    waiting.join()
    assert torch.equal(images(found[0]), expected(root))
    os.close(began)
    os.close(begin)


def full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk_is_told_and_nothing_half_written_is_used(
    root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module.os, call, full)
        with pytest.raises(OSError, match=r"is full .* take 0.00 MB, and [\d.,]+ GB are free"):
            build(root)
    assert torch.equal(images(build(root)), expected(root))


def test_a_cache_that_lost_its_end_is_built_again(root: Path) -> None:
    cache = build(root)
    os.truncate(folder_of(cache) / "pixels.raw", 100)
    assert torch.equal(images(build(root)), expected(root))
    (folder_of(cache) / "about.json").write_text("")
    assert torch.equal(images(build(root)), expected(root))


def other_rules(root: Path, *fits: str) -> list[Path]:
    """Build caches that nobody has open; the first was used longest ago."""
    folders = []
    for time, fit in enumerate(fits):
        folders.append(folder_of(build(root, Rule((8, 8), fit, channels=3, bits=8))))  # type: ignore[arg-type]
        os.utime(folders[-1] / "about.json", (time, time))
    return folders


def test_the_least_recently_used_cache_makes_room(root: Path) -> None:
    lost, kept = other_rules(root, "stretch", "pad")
    new = folder_of(build(root, max_bytes=2.9 * SIZE))
    assert [c.exists() for c in (lost, kept, new)] == [False, True, True]


def test_using_a_cache_makes_it_a_recent_one(root: Path) -> None:
    used, lost = other_rules(root, "stretch", "pad")
    build(root, Rule((8, 8), "stretch", channels=3, bits=8))
    build(root, max_bytes=2.9 * SIZE)
    assert [c.exists() for c in (used, lost)] == [True, False]


def test_a_cache_that_is_open_is_not_removed(root: Path) -> None:
    opened = build(root, Rule((8, 8), "stretch", channels=3, bits=8))
    (lost,) = other_rules(root, "pad")
    build(root, max_bytes=2.9 * SIZE)
    assert [c.exists() for c in (folder_of(opened), lost)] == [True, False]
    with pytest.raises(ValueError, match=r"with 0.0. MB that are in use, more than .* cache_gb"):
        build(root, Rule((8, 8), "pad", channels=3, bits=8), max_bytes=1.9 * SIZE)


def test_a_cache_that_is_being_built_is_not_removed(root: Path) -> None:
    folder = root.parent / "cache"
    (finished,) = other_rules(root, "pad")
    part = finished.rename(finished.with_suffix(".part"))
    with FileLock(folder / f"{finished.name}.lock"), pytest.raises(ValueError, match="in use"):
        build(root, max_bytes=1.9 * SIZE)
    assert part.exists()
    build(root, max_bytes=1.9 * SIZE)
    assert not part.exists()


def test_nothing_but_caches_is_removed(root: Path) -> None:
    precious = [root.parent / "cache" / name for name in ("photos", "0" * 32, "0" * 32 + ".part")]
    for folder in precious:
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(b"x" * 10_000)
    other_rules(root, "pad")
    build(root, max_bytes=1.9 * SIZE)
    assert all((folder / "a.png").exists() for folder in precious)


def test_a_cache_among_the_images_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="lies in the folder of the images"):
        cached(scan(root), RULE, root / "cache")
    assert torch.equal(images(cached(scan(root), RULE, root / ".cache")), expected(root))
    assert not (root / "cache").exists()


def test_images_that_take_more_than_all_may_take_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"take 0.00 MB, more than the 0.00 MB .* raise cache_gb"):
        build(root, max_bytes=1000)
    assert not list((root.parent / "cache").glob("*/pixels.raw"))


def test_what_cannot_be_used_is_named_and_its_place_kept(root: Path) -> None:
    (root / "0" / "02.png").write_bytes(b"")
    (root / "1" / "07.png").write_text("no image")
    cache = build(root)
    names = scan(root).names
    assert {names[i]: why for i, why in cache.unusable.items()} == {
        "0/02.png": "is empty (0 bytes)",
        "1/07.png": cache.unusable[names.index("1/07.png")],
    }
    usable = [i for i in range(NUM) if i not in cache.unusable]
    found = images(cache)[usable]
    wanted = torch.stack([RULE.apply(decode(root / names[i])) for i in usable])
    assert torch.equal(found, wanted)
    assert build(root).unusable == cache.unusable


def test_a_file_that_can_be_used_now_is_decoded(
    root: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    names = scan(root).names

    def forbidden(path: str) -> torch.Tensor:
        if path.endswith("/04.png"):
            raise UnusableImage("cannot be opened: Permission denied")
        return decode(path)

    with monkeypatch.context() as patch:
        patch.setattr(module, "decode", forbidden)
        assert build(root).unusable == {
            names.index("0/04.png"): "cannot be opened: Permission denied"
        }
        assert len(build(root).unusable) == 1
    cache = build(root)  # its time and size are those they were
    assert cache.unusable == {}
    assert torch.equal(images(cache), expected(root))
    assert set(decoded) == {"00.png", "04.png"}


def test_an_interruption_does_not_hide_what_cannot_be_used(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "0" / "02.png").write_bytes(b"")
    with monkeypatch.context() as patch:
        stop_after(patch, 13, interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(root)
    assert build(root).unusable == {1: "is empty (0 bytes)"}


def test_equal_names_sizes_and_times_in_another_folder_are_told_apart(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("one", "same", "other")]
    for root, first in zip(roots, (0, 0, 100), strict=True):
        for i in range(NUM):
            write(root / f"{i}.bmp", first + i)
            os.utime(root / f"{i}.bmp", (5, 5))
    assert len({key_of(scan(root), RULE) for root in roots}) == 1
    caches = [build(root) for root in roots]
    for root, cache in zip(roots, caches, strict=True):
        assert torch.equal(images(cache), expected(root))
    assert folder_of(caches[0]) == folder_of(caches[1]) != folder_of(caches[2])
    assert folder_of(build(roots[2])) == folder_of(caches[2])


def test_what_another_decoder_rounds_otherwise_is_no_change(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build(root)
    monkeypatch.setattr(module, "decode", lambda path: decode(path) ^ 1)
    again = build(root)
    assert folder_of(again) == folder_of(before)
    assert torch.equal(images(again), expected(root))
    write(root / "new.png", 98)
    kept = images(build(root))[: NUM // 2]
    assert torch.equal(kept, expected(root)[: NUM // 2])


def test_files_that_change_without_a_trace_are_noticed(tmp_path: Path) -> None:
    root = tmp_path / "in"

    def fill(first: int, num: int = NUM) -> None:
        for i in range(num):
            write(root / f"{i}.bmp", first + i)
            os.utime(root / f"{i}.bmp", (5, 5))

    fill(0)
    build(root)
    fill(100)
    assert torch.equal(images(build(root)), expected(root))
    fill(200, NUM + 1)  # another key: what the older cache has is not taken over
    assert torch.equal(images(build(root)), expected(root))


def test_a_cache_that_may_only_be_read_is_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(root)

    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(store.os, "utime", forbidden)
    assert torch.equal(images(build(root)), expected(root))
    monkeypatch.setattr(store.Path, "mkdir", forbidden)
    with pytest.raises(OSError, match=r"cache .* cannot be written .* name another folder with"):
        build(root, Rule((8, 8), "pad", channels=3, bits=8))


def test_what_is_taken_over_is_what_its_hash_says(root: Path) -> None:
    first = build(root)
    with (folder_of(first) / "pixels.raw").open("r+b") as file:
        file.write(b"\7" * 3 * 8 * 8)
    write(root / "new.png", 98)
    assert torch.equal(images(build(root)), expected(root))


def test_a_file_that_changes_meanwhile_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(path: str) -> torch.Tensor:
        return decode(path)[:1] if path.endswith("/07.png") else decode(path)

    monkeypatch.setattr(module, "decode", other)
    with pytest.raises(ValueError, match=r"07\.png changed while it was decoded; start again"):
        build(root, Rule((8, 8)))


def test_if_no_image_can_be_used_the_first_one_says_why(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    for rule in (RULE, Rule()):
        with pytest.raises(ValueError, match=r"None of the 1 images .* 'a\.png' is empty"):
            build(tmp_path / "in", rule)


@pytest.mark.parametrize(
    ("shape", "rule", "message"),
    [
        ((9, 12), Rule((8, 8), bits=8), r"channels: 3 \(20 images\), 1 \(1, such as 'odd.png'\);"),
        ((7, 12, 3), Rule(channels=3, bits=8), r"width\): 9x12 \(20 images\), 7x12 \(1, .*size=64"),
        ((9, 12, 4), Rule((8, 8)), r"channels: 3 \(20 images\), 4 \(1, .* channels=3 \(gray is"),
    ],
)
@pytest.mark.parametrize("probed", [1000, 3])
def test_images_that_differ_need_a_rule(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    rule: Rule,
    message: str,
    probed: int,
) -> None:
    monkeypatch.setattr(module, "_PROBED", probed)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # a single thread
    write(root / "odd.png", 5, shape)
    with pytest.raises(ValueError, match=message):
        build(root, rule)


def test_different_bits_need_a_rule(root: Path) -> None:
    Image.fromarray(np.zeros((9, 12), np.uint16)).save(root / "deep.png")
    with pytest.raises(ValueError, match=r"bits: 8 \(20 images\), 16 \(1, .*bits=8 or bits=16"):
        build(root, Rule((8, 8), channels=1))
    assert images(build(root, Rule((8, 8), channels=1, bits=16))).dtype == torch.uint16


def test_an_image_too_small_to_cut_cannot_be_used(root: Path) -> None:
    write(root / "small.png", 1, (7, 12, 3))
    cache = build(root, Rule((8, 8), "cut", channels=3, bits=8))
    assert list(cache.unusable.values()) == [str(_too_small())]


def _too_small() -> UnusableImage:
    with pytest.raises(UnusableImage) as caught:
        Rule((8, 8), "cut").apply(torch.zeros(3, 7, 12, dtype=torch.uint8))
    return caught.value
