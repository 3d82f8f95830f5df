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
from PIL import Image

from imgsynth.data import cache as module
from imgsynth.data.cache import Cache, cached, key_of
from imgsynth.data.decode import UnusableImage, decode
from imgsynth.data.rule import Rule
from imgsynth.data.scan import scan
from imgsynth.data.source import hash_images

RULE = Rule((8, 8), channels=3, bits=8)
NUM = 20


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
    """The names of the files that are decoded, as they are."""
    names: list[str] = []

    def noted(path: str) -> torch.Tensor:
        names.append(Path(path).name)
        return decode(path)

    monkeypatch.setattr(module, "decode", noted)
    return names


def build(root: Path, rule: Rule = RULE, **options: Any) -> Cache:
    return cached(scan(root), rule, root.parent / "cache", **options)


def images(cache: Cache) -> torch.Tensor:
    source = cache.source(torch.arange(cache.shape[0]), None)
    return source.fetch(torch.arange(len(source)))["image"]


def expected(root: Path, rule: Rule = RULE) -> torch.Tensor:
    return torch.stack([rule.apply(decode(root / name)) for name in scan(root).names])


def test_it_holds_each_image_by_the_rule_in_the_order_of_names(root: Path) -> None:
    cache = build(root)
    assert (cache.shape, cache.dtype, cache.unusable) == ((NUM, 3, 8, 8), torch.uint8, {})
    assert torch.equal(images(cache), expected(root))
    assert cache.hashes.tolist() == hash_images(expected(root)).tolist()


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 6), dtype=np.uint16)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "deep.png")
    cache = build(tmp_path / "in", Rule())
    assert (cache.shape, cache.dtype) == ((1, 1, 4, 6), torch.uint16)
    assert np.array_equal(images(cache)[0, 0].numpy(), pixels)
    assert cache.hashes.tolist() == hash_images(images(cache)).tolist()


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
    assert second.hashes.tolist() == hash_images(expected(root)).tolist()
    assert first.folder != second.folder


def test_a_file_of_the_same_size_that_was_written_again_is_noticed(root: Path) -> None:
    before = key_of(scan(root), RULE)
    file = root / "1" / "05.png"
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1))
    assert key_of(scan(root), RULE) != before


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


def test_of_two_at_once_one_decodes_and_the_other_waits(
    root: Path, decoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[Cache] = []
    both = [threading.Thread(target=lambda: found.append(build(root))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(decoded) == NUM + 1
    assert torch.equal(images(found[0]), images(found[1]))


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
    os.truncate(cache.folder / "pixels.raw", 100)
    assert torch.equal(images(build(root)), expected(root))
    (cache.folder / "about.json").write_text("")
    assert torch.equal(images(build(root)), expected(root))


def test_the_least_recently_used_cache_makes_room(root: Path) -> None:
    size = NUM * 3 * 8 * 8
    kept = build(root)
    lost = build(root, Rule((8, 8), "stretch", channels=3, bits=8))
    for cache, time in ((kept, 2), (lost, 1)):
        os.utime(cache.folder / "about.json", (time, time))
    new = build(root, Rule((8, 8), "pad", channels=3, bits=8), max_bytes=2.9 * size)
    assert [c.folder.exists() for c in (kept, lost, new)] == [True, False, True]


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
    found = cache.source(torch.tensor(usable), None).fetch(torch.arange(len(usable)))["image"]
    wanted = torch.stack([RULE.apply(decode(root / names[i])) for i in usable])
    assert torch.equal(found, wanted)
    assert build(root).unusable == cache.unusable


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
    assert build(root, Rule((8, 8), channels=1, bits=16)).dtype == torch.uint16


def test_where_caches_are_is_the_environments_to_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMGSYNTH_CACHE", str(tmp_path / "here"))
    assert module.default_folder() == tmp_path / "here"
    monkeypatch.delenv("IMGSYNTH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    assert module.default_folder() == tmp_path / "there" / "imgsynth"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert module.default_folder() == Path.home() / ".cache" / "imgsynth"


def test_an_image_too_small_to_cut_cannot_be_used(root: Path) -> None:
    write(root / "small.png", 1, (7, 12, 3))
    cache = build(root, Rule((8, 8), "cut", channels=3, bits=8))
    assert list(cache.unusable.values()) == [str(_too_small())]


def _too_small() -> UnusableImage:
    with pytest.raises(UnusableImage) as caught:
        Rule((8, 8), "cut").apply(torch.zeros(3, 7, 12, dtype=torch.uint8))
    return caught.value
