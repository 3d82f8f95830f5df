"""Decoding a folder into its cache.

What is decoded is written to ``KEY.part``, each image to its place, and noted as done. An
interrupted build goes on with the images that are not, or whose pixels and hash disagree because
they never reached the disk. Files that cannot be used are never done: they are tried again.
"""

import contextlib
import errno
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from imgsynth.data.cache import (
    VERSION,
    Cache,
    discard,
    gigabytes,
    key_of,
    make_room,
    one_at_a_time,
    opened,
    read_about,
)
from imgsynth.data.decode import Header, UnusableImage, decode, read_header
from imgsynth.data.rule import Rule
from imgsynth.data.scan import Listing, spread
from imgsynth.data.source import hash_images
from imgsynth.folders import default_folder

_AT_ONCE = 256
_A_TASK = 8
_PROBED = 256
_COMPARED = 8
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ADVICE = {
    "size": "say what all become with size=64 (pixels a side), and fit= for how.",
    "channels": "say what all become with channels=3 (gray is repeated) or channels=1.",
    "bits": "say what all become with bits=8 or bits=16.",
}
_T = TypeVar("_T")


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
            can be used, if they take more than ``max_bytes``, or if the cache would lie among them.
        OSError: If the disk is full, or the cache's folder cannot be written.
    """
    folder = (folder or default_folder()).expanduser().resolve()
    _refuse_inside(folder, listing.root.resolve())
    key = key_of(listing, rule)
    root = str(listing.root.resolve())
    found = opened(folder / key)
    if found is not None and found.root != root and not _agrees(found, listing):
        key = key_of(listing, rule, root)
        found = opened(folder / key)
    if found is not None and _agrees(found, listing) and not _is_mended(found, listing):
        return found
    with one_at_a_time(folder, key, listing.root):
        found = opened(folder / key)
        if found is not None and not _agrees(found, listing):
            discard(folder / key)
            found = None
        if found is None or _is_mended(found, listing):
            Build(listing, rule, folder, key).run(max_bytes)
            found = opened(folder / key)
    if found is None:
        raise OSError(f"The cache {folder / key} was removed while it was opened; start again.")
    return found


def _refuse_inside(folder: Path, root: Path) -> None:
    if folder.is_relative_to(root):
        inside = folder.relative_to(root).parts
        if not any(part.startswith(".") for part in inside):
            raise ValueError(
                f"The cache {folder} lies in the folder of the images, {root}, and would be taken "
                "for some of them; name another folder with cache= or $IMGSYNTH_CACHE."
            )


def _agrees(cache: Cache, listing: Listing) -> bool:
    """Say whether some files still give what is in a cache.

    Archives give all files the same time, so that names, sizes and times need not tell.
    """
    for place in spread(len(listing), _COMPARED):
        try:
            image = cache.rule.apply(decode(listing.path(place)))
        except UnusableImage:
            if place not in cache.unusable:
                return False
        else:
            if not _are_alike(image, cache.images.fetch(torch.tensor([place]))["image"][0]):
                return False
    return True


def _are_alike(image: Tensor, kept: Tensor) -> bool:
    """Say whether two images are the same but for what decoders and processors round."""
    difference = (image.int() - kept.int()).abs().double().mean()
    return bool(difference <= 0.01 * torch.iinfo(image.dtype).max)


def _is_mended(cache: Cache, listing: Listing) -> bool:
    """Say whether a file can be used that could not: permissions and packages leave no trace."""
    for place, reason in cache.unusable.items():
        if "cannot be opened" in reason or "needs" in reason:
            with contextlib.suppress(UnusableImage):
                cache.rule.apply(decode(listing.path(place)))
                return True
    return False


class _Differs(Exception):  # noqa: N818
    """An image differs from those whose headers were looked at."""


class _File:
    """An open file that is closed when nobody needs it: not before the last thread has ended."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class Build:
    """One build, under the lock of its key.

    Args:
        listing: The files.
        rule: What becomes of each; what it leaves open all must agree on.
        folder: Where caches are.
        key: The name of the new one.
    """

    def __init__(self, listing: Listing, rule: Rule, folder: Path, key: str) -> None:
        self.listing = listing
        self.rule = self.wanted = rule
        self.folder = folder
        self.part = folder / f"{key}.part"
        self.final = folder / key
        self.reasons: dict[int, str] = {}

    def run(self, max_bytes: float) -> None:
        """Decode what is not decoded yet.

        Args:
            max_bytes: Bytes that all caches may take.

        Raises:
            ValueError: If the images differ where the rule leaves something open, if none can be
                used, or if they take too much.
            OSError: If the disk is full.
        """
        everything = range(len(self.listing))
        try:
            self.rule = self._resolved(spread(len(self.listing), _PROBED))
            first = self._first()
            self.shape = (len(self.listing), *first.shape)
            self.dtype = first.dtype
            self.row_bytes = first.nbytes
            make_room(self.folder, self.final.name, self._bytes(), max_bytes)
            self._fill()
        except _Differs as error:
            self._resolved(everything)  # says how
            raise ValueError(f"{error} changed while it was decoded; start again.") from error
        except OSError as error:
            if error.errno in _FULL:
                raise self._full(error) from error
            raise
        if self.final.exists():  # a file was mended, or a power cut left it incomplete
            discard(self.final)
        self.part.rename(self.final)

    def _bytes(self) -> int:
        return len(self.listing) * self.row_bytes

    def _full(self, error: OSError) -> OSError:
        free = shutil.disk_usage(self.folder).free
        return OSError(
            f"The disk of {self.folder} is full ({error.strerror}): the decoded images of "
            f"{self.listing.root} take {gigabytes(self._bytes())}, and {gigabytes(free)} are "
            "free; free some, name another folder with cache=, or choose a smaller size. What is "
            "decoded already is used again."
        )

    def _none(self) -> ValueError:
        place, reason = min(self.reasons.items())
        return ValueError(
            f"None of the {len(self.listing):,} images in {self.listing.root} can be used; "
            f"{self.listing.names[place]!r} {reason}."
        )

    def _each(
        self, verb: str, work: Callable[[int], _T], places: Sequence[int], done: int = 0
    ) -> Iterator[tuple[int, _T]]:
        """Yield each place with what ``work`` gives for it, from several threads, with a bar."""
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4
        bar = tqdm(
            total=done + len(places),
            initial=done,
            desc=f"{verb} {self.listing.root.name or self.listing.root}",
            unit=" images",
            leave=False,
            disable=None,
        )

        def several(task: Sequence[int]) -> list[_T]:
            return [work(place) for place in task]

        # On the way out all threads end before anything they use is closed.
        with bar, ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(places), _AT_ONCE):
                chunk = places[start : start + _AT_ONCE]
                tasks = [chunk[i : i + _A_TASK] for i in range(0, len(chunk), _A_TASK)]
                for task, results in zip(tasks, pool.map(several, tasks), strict=True):
                    yield from zip(task, results, strict=True)
                    bar.update(len(task))

    # -- what the rule leaves open ------------------------------------------------------------

    def _resolved(self, places: Sequence[int]) -> Rule:
        """Look at some headers where the rule leaves something to the files.

        Where these agree and others do not, that is seen when those are decoded, and then all
        headers are looked at, for the message.
        """
        rule = self.wanted
        if None not in (rule.size, rule.channels, rule.bits):
            return rule
        found = self._each("looking at", self._header, places)
        headers = {place: header for place, header in found if header is not None}
        if not headers and len(places) < len(self.listing):
            return self._resolved(range(len(self.listing)))
        if not headers:
            raise self._none()
        if rule.size is None:
            sizes = {i: (h.height, h.width) for i, h in headers.items()}
            rule = replace(rule, size=self._agreed("size", "sizes (height x width)", sizes))
        if rule.channels is None:
            channels = {i: h.channels for i, h in headers.items()}
            rule = replace(rule, channels=self._agreed("channels", "numbers of channels", channels))
        if rule.bits is None:
            bits = {i: h.bits for i, h in headers.items()}
            rule = replace(rule, bits=self._agreed("bits", "numbers of bits", bits))
        return rule

    def _header(self, place: int) -> Header | None:
        try:
            return read_header(self.listing.path(place))
        except UnusableImage as error:
            self.reasons[place] = str(error)
            return None

    def _agreed(self, option: str, what: str, values: dict[int, Any]) -> Any:  # noqa: ANN401
        counts = Counter(values.values()).most_common()
        if len(counts) == 1:
            return counts[0][0]
        (usual, num), (other, num_other) = counts[:2]
        example = self.listing.names[next(i for i, value in values.items() if value == other)]
        more = f", and {len(counts) - 2:,} more" if len(counts) > 2 else ""
        raise ValueError(
            f"The images in {self.listing.root} have different {what}: {_text(usual)} ({num:,} "
            f"images), {_text(other)} ({num_other:,}, such as {example!r}){more}; "
            f"{_ADVICE[option]}"
        )

    def _first(self) -> Tensor:
        """Decode the first image that can be used, for shape and dtype."""
        for place in range(len(self.listing)):
            try:
                return self._image(place)
            except UnusableImage as error:
                self.reasons[place] = str(error)
        raise self._none()

    def _image(self, place: int) -> Tensor:
        image = decode(self.listing.path(place))
        wanted, rule = self.wanted, self.rule
        found = (
            (wanted.size, rule.size, tuple(image.shape[1:])),
            (wanted.channels, rule.channels, len(image)),
            (wanted.bits, rule.bits, 8 * image.element_size()),
        )
        if any(open_ is None and agreed != own for open_, agreed, own in found):
            raise _Differs(self.listing.path(place))
        return rule.apply(image)

    # -- pixels -------------------------------------------------------------------------------

    def _fill(self) -> None:
        self.part.mkdir(parents=True, exist_ok=True)
        plan = json.dumps([VERSION, self.shape, str(self.dtype), _plain(self.rule)])
        note = self.part / "plan.json"
        if not note.exists() or note.read_text() != plan:
            for file in self.part.iterdir():
                file.unlink()
        num = len(self.listing)
        hashes = _array(self.part / "hashes.u64", "<u8", num)
        done = _array(self.part / "done.u8", "u1", num)
        self.file = _File(_reserve(self.part / "pixels.raw", self._bytes()))
        try:
            note.write_text(plan)
            self._reuse(hashes, done)
            self._decode(hashes, done)
            os.fsync(self.file.number)
        finally:
            hashes.flush()
            done.flush()
        if not done.any():
            raise self._none()
        self._finish(done)

    def _decode(self, hashes: Any, done: Any) -> None:  # noqa: ANN401
        pending = np.flatnonzero(done == 0).tolist()
        self.reasons = {}
        found = self._each("decoding", self._store, pending, len(self.listing) - len(pending))
        with contextlib.closing(found):  # type: ignore[type-var]  # ends its threads at once
            for place, result in found:
                if isinstance(result, str):
                    self.reasons[place] = result
                else:
                    hashes[place] = result
                    done[place] = 1

    def _store(self, place: int) -> int | str:
        """Decode and write one image; return its hash, or why it cannot be used."""
        try:
            image = self._image(place)
        except UnusableImage as error:
            return str(error)
        assert (tuple(image.shape), image.dtype) == (self.shape[1:], self.dtype)
        self._write(place, image.numpy().data.cast("B"))
        return int(hash_images(image[None])[0])

    def _write(self, place: int, pixels: memoryview) -> None:
        offset = place * self.row_bytes
        while pixels:
            written = os.pwrite(self.file.number, pixels, offset)
            pixels, offset = pixels[written:], offset + written

    def _row(self, file: int, row: int) -> tuple[bytes, int | None]:
        """Read an image and its hash; None if it is not whole."""
        pixels = os.pread(file, self.row_bytes, row * self.row_bytes)
        if len(pixels) != self.row_bytes:
            return pixels, None
        image = torch.frombuffer(bytearray(pixels), dtype=self.dtype).view(1, *self.shape[1:])
        return pixels, int(hash_images(image)[0])

    def _reuse(self, hashes: Any, done: Any) -> None:  # noqa: ANN401
        """Keep what an interrupted build left, and take over what an older cache has."""
        for place in np.flatnonzero(done).tolist():
            if self._row(self.file.number, place)[1] != hashes[place]:
                done[place] = 0  # it never reached the disk
        if done.all():
            return
        for other in list(self.folder.iterdir()):
            about = read_about(other)
            ours = [str(self.listing.root.resolve()), _plain(self.wanted), _plain(self.rule)]
            # Another one may be removed meanwhile.
            with contextlib.suppress(OSError, ValueError, KeyError):
                if about and [about["root"], about["wanted"], about["rule"]] == ours:
                    self._take_over(other, hashes, done)

    def _take_over(self, other: Path, hashes: Any, done: Any) -> None:  # noqa: ANN401
        with np.load(other / "files.npz", allow_pickle=False) as files:
            names = files["names"].tobytes().decode(errors="surrogateescape").split("\0")
            stats = zip(names, files["sizes"].tolist(), files["mtimes"].tolist(), strict=True)
            rows = {file: row for row, file in enumerate(stats) if files["done"][row]}
        theirs = np.fromfile(other / "hashes.u64", "<u8")
        ours = zip(
            self.listing.names,
            self.listing.sizes.tolist(),
            self.listing.mtimes.tolist(),
            strict=True,
        )
        same = {i: rows[f] for i, f in enumerate(ours) if not done[i] and f in rows}
        places = list(same)
        file = os.open(other / "pixels.raw", os.O_RDONLY)
        try:
            for i in spread(len(places), _COMPARED):
                pixels, _ = self._row(file, same[places[i]])
                kept = torch.frombuffer(bytearray(pixels), dtype=self.dtype).view(self.shape[1:])
                if not _are_alike(self._image(places[i]), kept):
                    return  # other files of equal names, sizes and times
            for place, row in same.items():
                pixels, found = self._row(file, row)
                if found == theirs[row]:
                    self._write(place, memoryview(pixels))
                    hashes[place], done[place] = found, 1
        finally:
            os.close(file)

    def _finish(self, done: Any) -> None:  # noqa: ANN401
        names = "\0".join(self.listing.names).encode(errors="surrogateescape")
        files = io.BytesIO()  # NumPy does not notice that a disk is full
        np.savez(
            files,
            names=np.frombuffer(names, np.uint8),
            sizes=self.listing.sizes,
            mtimes=self.listing.mtimes,
            done=done,
        )
        (self.part / "files.npz").write_bytes(files.getvalue())
        about = {
            "version": VERSION,
            "root": str(self.listing.root.resolve()),
            "wanted": _plain(self.wanted),
            "rule": _plain(self.rule),
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "bytes": self._bytes(),
            "unusable": {str(k): self.reasons[k] for k in sorted(self.reasons)},
        }
        (self.part / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _plain(rule: Rule) -> Any:  # noqa: ANN401
    return json.loads(json.dumps(asdict(rule)))


def _text(value: Any) -> str:  # noqa: ANN401
    return f"{value[0]}x{value[1]}" if isinstance(value, tuple) else str(value)


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
