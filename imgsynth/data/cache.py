"""The decoded images of a folder, in one file that processes map into memory.

A cache is a folder called by its key: a hash of the names, sizes and times of the source files and
of the rule. In it ``pixels.raw`` holds the images one after the other, ``hashes.u64`` a hash of
each, and ``about.json`` the rest. It is built in ``KEY.part`` and renamed when it is complete, so
that nothing half-written is ever read; what is in ``KEY.part`` after an interruption is used again,
image by image, where pixels and hash agree.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from imgsynth.data.decode import Header, UnusableImage, decode, read_header
from imgsynth.data.rule import Rule
from imgsynth.data.scan import Listing
from imgsynth.data.source import Hashes, MappedSource, hash_images

_VERSION = 1
_AT_ONCE = 256
_A_TASK = 8
_PROBED = 256
_PENDING, _DONE, _UNUSABLE = 0, 1, 2
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def default_folder() -> Path:
    """Return where caches are: ``$IMGSYNTH_CACHE``, or ``imgsynth`` in the user's cache folder."""
    if given := os.environ.get("IMGSYNTH_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imgsynth"


@dataclass(frozen=True)
class Cache:
    """Decoded images.

    Attributes:
        folder: Where it is.
        shape: ``(N, C, H, W)``; N counts the files that could not be used too.
        dtype: uint8 or uint16.
        unusable: Why a file has no image, by its place.
    """

    folder: Path
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    unusable: dict[int, str]

    @cached_property
    def hashes(self) -> Hashes:
        """A hash of each image; see :func:`~imgsynth.data.source.hash_images`."""
        return np.fromfile(self.folder / "hashes.u64", "<u8").astype(np.uint64)

    def source(self, rows: Tensor, labels: Tensor | None) -> MappedSource:
        """Return some of the images.

        Args:
            rows: Their places, int64 ``(N,)``.
            labels: Their labels, int64 ``(N,)``, or None.
        """
        hashes = self.hashes[rows.numpy()]
        return MappedSource(
            self.folder / "pixels.raw", self.shape, self.dtype, labels, rows, hashes
        )


def key_of(listing: Listing, rule: Rule) -> str:
    """Return the name of the cache that these files and this rule need, 32 hexadecimal digits."""
    names = "\0".join(listing.names).encode(errors="surrogateescape")
    digest = hashlib.blake2b(f"{_VERSION} {sorted(asdict(rule).items())}".encode(), digest_size=16)
    for part in (names, listing.sizes.astype("<i8").data, listing.mtimes.astype("<i8").data):
        digest.update(hashlib.blake2b(part).digest())
    return digest.hexdigest()


def cached(
    listing: Listing, rule: Rule, folder: Path | None = None, max_bytes: float = 50e9
) -> Cache:
    """Return the decoded images of these files; decode them if that was not done yet.

    A process that finds another one decoding waits for it.

    Args:
        listing: The files.
        rule: What becomes of each.
        folder: Where caches are; None: see :func:`default_folder`.
        max_bytes: Bytes that all caches may take; the least recently used ones make room.

    Raises:
        ValueError: If the images differ and the rule does not say what to make of that, if none
            can be used, or if they take more than ``max_bytes``.
        OSError: If the disk is full.
    """
    folder = folder or default_folder()
    key = key_of(listing, rule)
    if (found := _opened(folder / key)) is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with _lock_of(folder / f"{key}.lock", listing.root):
        if (found := _opened(folder / key)) is None:
            _Build(listing, rule, folder, key, max_bytes).run()
            found = _opened(folder / key)
    assert found is not None
    return found


def _opened(folder: Path) -> Cache | None:
    """Open a complete cache; None if it is not there."""
    about = _about(folder)
    if about is None:
        return None
    os.utime(folder / "about.json")  # when it was used last
    unusable = {int(place): reason for place, reason in about["unusable"].items()}
    return Cache(folder, tuple(about["shape"]), getattr(torch, about["dtype"]), unusable)


def _about(folder: Path) -> dict[str, Any] | None:
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_bytes())
        complete = (folder / "pixels.raw").stat().st_size == about["bytes"]
    except (OSError, ValueError, KeyError):
        return None
    return about if complete and about["version"] == _VERSION else None


@contextlib.contextmanager
def _lock_of(path: Path, root: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            tqdm.write(f"Waiting for another process that decodes {root}.", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _OthersDiffer(Exception):  # noqa: N818
    """An image differs from those whose headers were looked at."""


class _Build:
    """One build, under the lock of its key."""

    def __init__(
        self, listing: Listing, rule: Rule, folder: Path, key: str, max_bytes: float
    ) -> None:
        self.listing = listing
        self.rule = self.wanted = rule
        self.folder = folder
        self.part = folder / f"{key}.part"
        self.final = folder / key
        self.max_bytes = max_bytes
        self.reasons: dict[int, str] = {}

    def run(self) -> None:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4
        with ThreadPoolExecutor(threads) as pool:
            self.pool = pool
            self.rule = self._resolved(spread(len(self.listing), _PROBED))
            first = self._first()
            self.shape = (len(self.listing), *first.shape)
            self.dtype = first.dtype
            self.row_bytes = first.nbytes
            _make_room(self.folder, self.final.name, self._bytes(), self.max_bytes)
            try:
                self._fill()
            except _OthersDiffer:
                self._resolved(range(len(self.listing)))  # says how
                raise
            except OSError as error:
                if error.errno in _FULL:
                    raise self._full(error) from error
                raise
        shutil.rmtree(self.final, ignore_errors=True)  # what a power cut left incomplete
        self.part.replace(self.final)

    def _bytes(self) -> int:
        return len(self.listing) * self.row_bytes

    def _full(self, error: OSError) -> OSError:
        free = shutil.disk_usage(self.folder).free
        return OSError(
            f"The disk of {self.folder} is full ({error.strerror}): the decoded images of "
            f"{self.listing.root} take {_gigabytes(self._bytes())}, and {_gigabytes(free)} are "
            "free; free some, name another folder with cache=, or choose a smaller size. What is "
            "decoded already is used again."
        )

    # -- what the rule leaves open ------------------------------------------------------------

    def _resolved(self, places: Sequence[int]) -> Rule:
        """Look at some headers where the rule leaves something to the files.

        Where these agree and others do not, that is seen when those are decoded, and then all
        headers are looked at, for the message.
        """
        rule = self.wanted
        if None not in (rule.size, rule.channels, rule.bits):
            return rule
        headers = self._headers(places)
        if not headers and len(places) < len(self.listing):
            headers = self._headers(range(len(self.listing)))
        if not headers:
            raise self._none()
        if rule.size is None:
            sizes = [(h.height, h.width) for h in headers.values()]
            rule = replace(
                rule, size=self._agreed(sizes, headers, "sizes (height x width)", _SIZE_HELP)
            )
        if rule.channels is None:
            channels = [h.channels for h in headers.values()]
            agreed = self._agreed(channels, headers, "numbers of channels", _CHANNELS_HELP)
            rule = replace(rule, channels=agreed)
        if rule.bits is None:
            bits = [h.bits for h in headers.values()]
            rule = replace(rule, bits=self._agreed(bits, headers, "numbers of bits", _BITS_HELP))
        return rule

    def _headers(self, places: Sequence[int]) -> dict[int, Header]:
        headers: dict[int, Header] = {}
        with self._bar("looking at", 0, len(places)) as bar:
            for chunk in _chunks(places):
                found = zip(chunk, self.pool.map(self._header, chunk), strict=True)
                headers |= {place: header for place, header in found if header is not None}
                bar.update(len(chunk))
        return headers

    def _header(self, place: int) -> Header | None:
        try:
            return read_header(self.listing.path(place))
        except UnusableImage as error:
            self.reasons[place] = str(error)
            return None

    def _agreed(
        self, values: Sequence[Any], headers: dict[int, Header], what: str, advice: str
    ) -> Any:  # noqa: ANN401
        counts = Counter(values).most_common()
        if len(counts) == 1:
            return counts[0][0]
        (usual, num), (other, num_other) = counts[:2]
        example = self.listing.names[list(headers)[list(values).index(other)]]
        more = f", and {len(counts) - 2:,} more" if len(counts) > 2 else ""
        raise ValueError(
            f"The images in {self.listing.root} have different {what}: {_text(usual)} ({num:,} "
            f"images), {_text(other)} ({num_other:,}, such as {example!r}){more}; {advice}"
        )

    def _first(self) -> Tensor:
        """Decode the first image that can be used, for shape and dtype."""
        for place in range(len(self.listing)):
            if place not in self.reasons:
                try:
                    return self._image(place)
                except UnusableImage as error:
                    self.reasons[place] = str(error)
        raise self._none()

    def _none(self) -> ValueError:
        return ValueError(
            f"None of the {len(self.listing):,} images in {self.listing.root} can be used; "
            f"{self.listing.names[0]!r} {self.reasons[0]}."
        )

    # -- pixels -------------------------------------------------------------------------------

    def _fill(self) -> None:
        self.part.mkdir(parents=True, exist_ok=True)
        if self._plan() != _json(self.part / "plan.json"):
            for file in self.part.iterdir():
                file.unlink()
        num = len(self.listing)
        hashes = _array(self.part / "hashes.u64", "<u8", num)
        state = _array(self.part / "state.u8", "u1", num)
        self.file = _reserve(self.part / "pixels.raw", self._bytes())
        (self.part / "plan.json").write_text(json.dumps(self._plan()))
        try:
            for place in self.reasons:
                state[place] = _UNUSABLE
            self._reuse(hashes, state)
            self._decode(hashes, state)
            os.fsync(self.file)
        finally:
            hashes.flush()
            state.flush()
            os.close(self.file)
        if not (state == _DONE).any():
            raise self._none()
        self._finish()

    def _plan(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "dtype": str(self.dtype), "version": _VERSION}

    def _decode(self, hashes: Any, state: Any) -> None:  # noqa: ANN401
        pending = np.flatnonzero(state == _PENDING).tolist()
        num = len(self.listing)
        with self._bar("decoding", num - len(pending), num) as bar:
            for chunk in _chunks(pending):
                tasks = [chunk[i : i + _A_TASK] for i in range(0, len(chunk), _A_TASK)]
                for task, results in zip(tasks, self.pool.map(self._store_all, tasks), strict=True):
                    for place, result in zip(task, results, strict=True):
                        if isinstance(result, str):
                            self.reasons[place] = result
                            state[place] = _UNUSABLE
                        else:
                            hashes[place] = result
                            state[place] = _DONE
                bar.update(len(chunk))

    def _bar(self, verb: str, done: int, num: int) -> Any:  # noqa: ANN401
        return tqdm(
            total=num,
            initial=done,
            desc=f"{verb} {self.listing.root.name or self.listing.root}",
            unit=" images",
            leave=False,
            disable=None,
        )

    def _image(self, place: int) -> Tensor:
        image = decode(self.listing.path(place))
        wanted, rule = self.wanted, self.rule
        found = (
            (wanted.size, rule.size, tuple(image.shape[1:])),
            (wanted.channels, rule.channels, len(image)),
            (wanted.bits, rule.bits, 8 * image.element_size()),
        )
        if any(open_ is None and agreed != own for open_, agreed, own in found):
            raise _OthersDiffer
        return rule.apply(image)

    def _store_all(self, places: Sequence[int]) -> list[int | str]:
        return [self._store(place) for place in places]

    def _store(self, place: int) -> int | str:
        """Decode and write one image; return its hash, or why it cannot be used."""
        try:
            image = self._image(place)
        except UnusableImage as error:
            return str(error)
        assert (tuple(image.shape), image.dtype) == (self.shape[1:], self.dtype)
        self._write(place, _bytes_of(image))
        return int(hash_images(image[None])[0])

    def _write(self, place: int, pixels: memoryview) -> None:
        offset = place * self.row_bytes
        while pixels:
            written = os.pwrite(self.file, pixels, offset)
            pixels, offset = pixels[written:], offset + written

    def _row(self, file: int, row: int) -> bytes:
        return os.pread(file, self.row_bytes, row * self.row_bytes)

    def _hash(self, pixels: bytes) -> int | None:
        if len(pixels) != self.row_bytes:
            return None
        image = torch.frombuffer(bytearray(pixels), dtype=self.dtype).view(1, *self.shape[1:])
        return int(hash_images(image)[0])

    def _reuse(self, hashes: Any, state: Any) -> None:  # noqa: ANN401
        """Keep what an interrupted build left, and take over what an older cache has."""
        for place in np.flatnonzero(state == _DONE).tolist():
            if self._hash(self._row(self.file, place)) != hashes[place]:
                state[place] = _PENDING  # it never reached the disk
        if (state != _PENDING).all():
            return
        for other in self.folder.iterdir():
            about = _about(other)
            if about is None or about["root"] != str(self.listing.root.resolve()):
                continue
            if about["rule"] == _plain(self.rule) and about["shape"][1:] == list(self.shape[1:]):
                with contextlib.suppress(OSError):  # it may be removed meanwhile
                    self._take_over(other, hashes, state)

    def _take_over(self, other: Path, hashes: Any, state: Any) -> None:  # noqa: ANN401
        names = (other / "names").read_bytes().decode(errors="surrogateescape").split("\0")
        stats = np.fromfile(other / "stats.i64", "<i8").reshape(2, -1).T.tolist()
        usable = np.fromfile(other / "state.u8", "u1")
        rows = {(name, *stat): i for i, (name, stat) in enumerate(zip(names, stats, strict=True))}
        theirs = np.fromfile(other / "hashes.u64", "<u8")
        sizes, mtimes = self.listing.sizes.tolist(), self.listing.mtimes.tolist()
        file = os.open(other / "pixels.raw", os.O_RDONLY)
        try:
            for place in np.flatnonzero(state == _PENDING).tolist():
                row = rows.get((self.listing.names[place], sizes[place], mtimes[place]))
                if row is None or usable[row] != _DONE:
                    continue
                pixels = self._row(file, row)
                if self._hash(pixels) == theirs[row]:
                    self._write(place, memoryview(pixels))
                    hashes[place], state[place] = theirs[row], _DONE
        finally:
            os.close(file)

    def _finish(self) -> None:
        names = "\0".join(self.listing.names).encode(errors="surrogateescape")
        (self.part / "names").write_bytes(names)
        stats = np.stack([self.listing.sizes, self.listing.mtimes]).astype("<i8")
        stats.tofile(self.part / "stats.i64")
        about = {
            "version": _VERSION,
            "root": str(self.listing.root.resolve()),
            "rule": _plain(self.rule),
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "bytes": self._bytes(),
            "unusable": {str(k): self.reasons[k] for k in sorted(self.reasons)},
        }
        (self.part / "about.json").write_text(json.dumps(about), encoding="utf-8")


_SIZE_HELP = "say what all become with size=64 (pixels a side), and fit= for how."
_CHANNELS_HELP = "say what all become with channels=3 (gray is repeated) or channels=1."
_BITS_HELP = "say what all become with bits=8 or bits=16."


def spread(num: int, most: int) -> Sequence[int]:
    """Return at most so many numbers below ``num``, evenly spread.

    Example:
        >>> list(spread(10, 4))
        [0, 2, 5, 7]
    """
    return range(num) if num <= most else [i * num // most for i in range(most)]


def _plain(rule: Rule) -> Any:  # noqa: ANN401
    return json.loads(json.dumps(asdict(rule)))


def _text(value: Any) -> str:  # noqa: ANN401
    return f"{value[0]}x{value[1]}" if isinstance(value, tuple) else str(value)


def _chunks(places: Sequence[int]) -> Iterator[Sequence[int]]:
    return (places[i : i + _AT_ONCE] for i in range(0, len(places), _AT_ONCE))


def _json(path: Path) -> Any:  # noqa: ANN401
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _bytes_of(image: Tensor) -> memoryview:
    array = image.contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).data.cast("B")


def _reserve(path: Path, num_bytes: int) -> int:
    """Open a file whose bytes are set aside on the disk, so that it cannot fill up later."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if os.fstat(file).st_size != num_bytes:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, num_bytes)
            os.ftruncate(file, num_bytes)
    except OSError:
        os.close(file)
        path.unlink()
        raise
    return file


def _array(path: Path, kind: str, num: int) -> Any:  # noqa: ANN401
    os.close(_reserve(path, num * np.dtype(kind).itemsize))
    return np.memmap(path, kind, mode="r+", shape=(num,))


def _make_room(folder: Path, key: str, needed: int, max_bytes: float) -> None:
    """Remove the caches used longest ago until the new one fits into what all may take."""
    if needed > max_bytes:
        raise ValueError(
            f"The decoded images take {_gigabytes(needed)}, more than the {_gigabytes(max_bytes)} "
            "that caches may take; raise cache_gb, or choose a smaller size."
        )
    others = []
    for path in folder.iterdir():
        if path.is_dir() and path.name.removesuffix(".part") != key:
            used = (path / "about.json") if (path / "about.json").exists() else path
            others.append(
                (used.stat().st_mtime, sum(f.stat().st_size for f in path.iterdir()), path)
            )
    total = sum(size for _, size, _ in others) + needed
    for _, size, path in sorted(others):
        if total <= max_bytes:
            return
        lock = FileLock(folder / f"{path.name.removesuffix('.part')}.lock")
        try:
            lock.acquire(timeout=0)  # not while it is being built
        except Timeout:
            continue
        with lock:
            # A process that trains from it keeps the open file.
            shutil.rmtree(path, ignore_errors=True)
        lock.release()
        total -= size


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:,.2f} MB"
