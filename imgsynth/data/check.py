"""What a folder of images is like before one trains on it, in figures."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from imgsynth.data.decode import Header, UnusableImage, decode, read_header
from imgsynth.data.organise import Organisation
from imgsynth.data.rule import Rule
from imgsynth.data.scan import Listing
from imgsynth.data.source import Hashes, hash_images

Size = tuple[int, int]
"""Height and width in pixels."""

_AT_ONCE = 256
_LARGEST_PROPOSAL = 256
_UNREAD = {
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".exr", ".hdr"),
    *(".dng", ".cr2", ".nef", ".arw", ".dcm"),
}
"""Suffixes of pictures in formats that are not read."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of images, by their number of pixels.

    Attributes:
        smallest: Height and width of the smallest.
        median: Of the one in the middle.
        largest: Of the largest.
        num_distinct: How many different ones there are.
        aspect: Width / height: the smallest, the median and the largest.
    """

    smallest: Size
    median: Size
    largest: Size
    num_distinct: int
    aspect: tuple[float, float, float]


@dataclass(frozen=True)
class Effect:
    """What a rule with a size does to images.

    Attributes:
        num_smaller: Images with a side shorter than wanted.
        num_enlarged: Images that are enlarged, in one direction at least.
        most_enlarged: The largest factor; 1 if none is enlarged.
        most_enlarged_file: Whose it is; empty if none is enlarged.
        removed: Part of an image's area that is cut away, 0 to 1; the median.
        most_removed: The largest part.
        most_removed_file: Whose it is; empty if nothing is cut away.
    """

    num_smaller: int
    num_enlarged: int
    most_enlarged: float
    most_enlarged_file: str
    removed: float
    most_removed: float
    most_removed_file: str


@dataclass(frozen=True)
class Duplicates:
    """Files with the same pixels.

    Attributes:
        files: Their paths below the folder.
        same_bytes: Whether the files are the same, too.
        splits: The split of each; none if splits are not clear.
        classes: The class of each; none if there are none.
    """

    files: tuple[str, ...]
    same_bytes: bool
    splits: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def kind(self) -> str:
        """``leak`` in several splits, ``conflict`` in several classes, else ``duplicates``."""
        if len(set(self.splits)) > 1:
            return "leak"
        return "conflict" if len(set(self.classes)) > 1 else "duplicates"


@dataclass(frozen=True)
class Finding:
    """Something to know before training.

    Attributes:
        kind: ``organisation``, ``broken``, ``unfit``, ``unread``, ``leak``, ``conflict``,
            ``sizes``, ``channels``, ``bits``, ``empty_class``, ``duplicates`` or ``constant``.
        text: What it is, as a sentence.
        serious: Whether ``ImageFolder`` would refuse the folder, or results would be spoiled.
    """

    kind: str
    text: str
    serious: bool = True


@dataclass(frozen=True)
class Report:
    """What :func:`check` found.

    Attributes:
        root: The folder.
        num_images: Images that were looked at: all that lie in a split.
        num_left_out: Images in no split.
        others: How many files there are that their names do not call images, by suffix.
        empty_folders: Folders without images.
        problem: Why splits and classes are not clear; empty if they are.
        splits: Images of each split.
        classes: Images of each class, by split.
        sizes: Sizes of the images whose header can be read; so for all up to ``rotated``.
        formats: Images of each format, such as ``JPEG``.
        modes: Images of each mode in which pixels are stored, such as ``RGB``.
        channels: Images of each number of channels.
        bits: Images of 8 and 16 bits.
        rotated: Images that their EXIF orientation turns or mirrors.
        broken: Files that cannot be read, and why.
        unfit: Images that the rule cannot take, and why.
        duplicates: Files with the same pixels: leaks first, then conflicts.
        constant: Images in which no channel has a standard deviation of 2 of 255 levels.
        rule: What images are to become.
        effect: What it does to them; None if they keep their sizes.
        advice: Arguments that ``ImageFolder`` needs besides, or it would refuse these files.
        skips: Whether files that cannot be used are left out.
    """

    root: str
    num_images: int
    num_left_out: int
    others: Mapping[str, int]
    empty_folders: tuple[str, ...]
    problem: str
    splits: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    sizes: Sizes | None
    formats: Mapping[str, int]
    modes: Mapping[str, int]
    channels: Mapping[int, int]
    bits: Mapping[int, int]
    rotated: int
    broken: Mapping[str, str]
    unfit: Mapping[str, str]
    duplicates: tuple[Duplicates, ...]
    constant: tuple[str, ...]
    rule: Rule
    effect: Effect | None
    advice: Mapping[str, int | str]
    skips: bool = False

    @property
    def num_usable(self) -> int:
        """Images that can be trained on."""
        return self.num_images - len(self.broken) - len(self.unfit)

    @property
    def imbalance(self) -> float | None:
        """Images of the largest class / of the smallest that has any; None below two classes."""
        counts = [total for by_split in self.classes.values() if (total := sum(by_split.values()))]
        return max(counts) / min(counts) if len(counts) > 1 else None

    @property
    def is_good(self) -> bool:
        """Whether nothing needs attention."""
        return not any(finding.serious for finding in self.findings)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What to know, the serious first."""
        groups = Counter(group.kind for group in self.duplicates)
        left_out = {"broken", "unfit"} if self.skips else set()
        serious = [
            ("organisation", self.problem),
            ("leak", _said(groups["leak"], "in more than one split: a LEAK.")),
            ("conflict", _said(groups["conflict"], "in more than one CLASS.")),
            ("broken", _said(len(self.broken), "cannot be read.")),
            ("unfit", _said(len(self.unfit), "cannot be used with these options.")),
            ("unread", self._unread()),
            *self._mixtures(),
            ("empty_class", self._empty_classes()),
        ]
        remarks = [
            ("duplicates", _said(groups["duplicates"], "in more than one file.")),
            ("constant", _said(len(self.constant), "nearly of one colour.")),
        ]
        return (
            *(Finding(kind, text, kind not in left_out) for kind, text in serious if text),
            *(Finding(kind, text, serious=False) for kind, text in remarks if text),
        )

    def _mixtures(self) -> Iterator[tuple[str, str]]:
        """Yield what differs between images without that the rule says what all become."""
        if self.rule.size is None and self.sizes is not None and self.sizes.num_distinct > 1:
            yield "sizes", f"Images have {self.sizes.num_distinct:,} sizes; say which all get."
        if self.rule.channels is None and len(self.channels) > 1:
            *most, last = map(str, sorted(self.channels))
            numbers = f"{', '.join(most)} and {last}"
            yield "channels", f"Images have {numbers} channels; say how many all get."
        if self.rule.bits is None and len(self.bits) > 1:
            yield "bits", "Images have 8 and 16 bits; say how many all get."

    def _unread(self) -> str:
        kinds = [f"{suffix} {num:,}" for suffix, num in self.others.items() if suffix in _UNREAD]
        return f"Formats that are not read: {', '.join(kinds)}; convert them." if kinds else ""

    def _empty_classes(self) -> str:
        empty = [repr(name) for name, counts in self.classes.items() if not sum(counts.values())]
        more = f" and {len(empty) - 10:,} more" if len(empty) > 10 else ""
        return f"Classes without images: {', '.join(empty[:10])}{more}." if empty else ""


def _said(num: int, what: str) -> str:
    return f"{num:,} {'image' if num == 1 else 'images'} {what}" if num else ""


def check(
    listing: Listing,
    rule: Rule,
    organisation: Organisation | None = None,
    problem: str = "",
    skips: bool = False,
) -> Report:
    """Look at the images of a folder; each is decoded once, and none is kept in memory.

    Args:
        listing: The files.
        rule: What they are to become.
        organisation: Their splits and classes; only files in a split are looked at. None: they
            are not clear, and all files are looked at.
        problem: Why they are not clear.
        skips: Whether files that cannot be used are left out, and need no attention.

    Example:
        >>> import skimage
        >>> from imgsynth.data.scan import scan
        >>> listing = scan(Path(skimage.__file__).parent / "data")
        >>> # report = check(listing, Rule(size=(64, 64)))
        >>> # report.sizes.largest
        >>> # (1411, 1411)
    """
    organisation = organisation or Organisation({"": np.arange(len(listing))}, None, ())
    places = np.sort(np.concatenate(list(organisation.splits.values())))
    tally = _Tally(listing, rule)
    tally.look_at(places.tolist())
    return Report(
        root=str(listing.root),
        num_images=len(places),
        num_left_out=len(listing) - len(places),
        others=listing.others,
        empty_folders=listing.empty,
        problem=problem,
        splits={split: len(inside) for split, inside in organisation.splits.items() if split},
        classes=_classes(organisation),
        sizes=_sizes(tally.sizes),
        formats=dict(tally.formats.most_common()),
        modes=dict(tally.modes.most_common()),
        channels=dict(tally.channels.most_common()),
        bits=dict(tally.bits.most_common()),
        rotated=tally.rotated,
        broken=tally.broken,
        unfit=tally.unfit,
        duplicates=_duplicates(listing, tally.hashes, organisation),
        constant=tuple(tally.constant),
        rule=rule,
        effect=None if rule.size is None else _effect(rule, rule.size, tally),
        advice=_advice(tally),
        skips=skips,
    )


# -- one pass over the files ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    header: Header | None
    broken: str = ""
    unfit: str = ""
    hash: int = 0
    is_constant: bool = False


class _Tally:
    """What is counted while files are decoded."""

    def __init__(self, listing: Listing, rule: Rule) -> None:
        self.listing = listing
        self.rule = rule
        self.sizes: dict[Size, list[int]] = {}  # how many there are, and the place of the first
        self.formats: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.channels: Counter[int] = Counter()
        self.bits: Counter[int] = Counter()
        self.rotated = 0
        self.broken: dict[str, str] = {}
        self.unfit: dict[str, str] = {}
        self.constant: list[str] = []
        self.hashes = np.zeros(len(listing), np.uint64)  # 0 where there are no pixels

    def look_at(self, places: Sequence[int]) -> None:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4
        name = self.listing.root.name or str(self.listing.root)
        bar = tqdm(
            total=len(places), desc=f"checking {name}", unit=" images", leave=False, disable=None
        )
        with ThreadPoolExecutor(threads) as pool, bar:
            for start in range(0, len(places), _AT_ONCE):
                chunk = places[start : start + _AT_ONCE]
                paths = [self.listing.path(place) for place in chunk]
                looks = pool.map(partial(_look, rule=self.rule), paths)
                for place, look in zip(chunk, looks, strict=True):
                    self._add(place, look)
                bar.update(len(chunk))

    def _add(self, place: int, look: _Look) -> None:
        name = self.listing.names[place]
        if look.header is not None:
            self._add_header(place, look.header)
        if look.broken:
            self.broken[name] = look.broken
        if look.unfit:
            self.unfit[name] = look.unfit
        if look.is_constant:
            self.constant.append(name)
        self.hashes[place] = look.hash

    def _add_header(self, place: int, header: Header) -> None:
        self.sizes.setdefault((header.height, header.width), [0, place])[0] += 1
        self.formats[header.format] += 1
        self.modes[header.mode] += 1
        self.channels[header.channels] += 1
        self.bits[header.bits] += 1
        self.rotated += header.rotated


def _look(path: str | Path, rule: Rule) -> _Look:
    header = None
    try:
        header = read_header(path)
        image = decode(path)
    except UnusableImage as error:
        return _Look(header, broken=str(error))
    unfit = ""
    try:
        rule.apply(image)
    except UnusableImage as error:
        unfit = str(error)
    return _Look(header, "", unfit, int(hash_images(image[None])[0]), _is_constant(image))


def _is_constant(image: Tensor) -> bool:
    limit = 2 * torch.iinfo(image.dtype).max / 255
    return all(float(channel.to(torch.float32).std(correction=0)) < limit for channel in image)


# -- what follows from it -------------------------------------------------------------------------


def _classes(organisation: Organisation) -> dict[str, dict[str, int]]:
    if organisation.labels is None:
        return {}
    counts = {
        split: np.bincount(organisation.labels[places], minlength=len(organisation.classes))
        for split, places in organisation.splits.items()
    }
    return {
        name: {split: int(count[label]) for split, count in counts.items()}
        for label, name in enumerate(organisation.classes)
    }


def _sizes(sizes: Mapping[Size, Sequence[int]]) -> Sizes | None:
    if not sizes:
        return None
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    nums = [sizes[size][0] for size in ordered]
    middle = int(np.searchsorted(np.cumsum(nums), sum(nums) / 2))
    aspects = np.repeat([width / height for height, width in ordered], nums)
    aspect = float(aspects.min()), float(np.median(aspects)), float(aspects.max())
    return Sizes(ordered[0], ordered[middle], ordered[-1], len(sizes), aspect)


def _effect(rule: Rule, wanted: Size, tally: _Tally) -> Effect:
    num_smaller = num_enlarged = 0
    factors = [(1.0, "")]
    removed = [(0.0, "")]
    parts: list[float] = []
    for (height, width), (num, place) in tally.sizes.items():
        name = tally.listing.names[place]
        num_smaller += num * (height < wanted[0] or width < wanted[1])
        factor = _factor(rule, wanted[0] / height, wanted[1] / width)
        num_enlarged += num * (factor > 1)
        factors.append((factor, name))
        try:
            _, _, kept_height, kept_width = rule.kept(height, width)
        except UnusableImage:
            continue
        part = 1 - kept_height * kept_width / (height * width)
        removed.append((part, name))
        parts += [part] * num
    most_enlarged = max(factors, key=lambda pair: pair[0])
    most_removed = max(removed, key=lambda pair: pair[0])
    median = float(np.median(parts)) if parts else 0.0
    return Effect(num_smaller, num_enlarged, *most_enlarged, median, *most_removed)


def _factor(rule: Rule, vertical: float, horizontal: float) -> float:
    """By how much an image is enlarged, where it is enlarged most."""
    if rule.fit == "cut":
        return 1.0
    return min(vertical, horizontal) if rule.fit == "pad" else max(vertical, horizontal)


def _duplicates(
    listing: Listing, hashes: Hashes, organisation: Organisation
) -> tuple[Duplicates, ...]:
    split_of = np.zeros(len(listing), np.int64)
    for number, places_of_split in enumerate(organisation.splits.values()):
        split_of[places_of_split] = number
    splits = list(organisation.splits)
    labels, classes = organisation.labels, organisation.classes
    _, group_of, nums = np.unique(hashes, return_inverse=True, return_counts=True)
    groups: dict[int, list[int]] = {}
    for place in np.flatnonzero((nums[group_of] > 1) & (hashes != 0)).tolist():
        groups.setdefault(int(group_of[place]), []).append(place)
    duplicates = [
        Duplicates(
            tuple(listing.names[place] for place in places),
            _are_same(map(listing.path, places)),
            tuple(filter(None, (splits[number] for number in split_of[places]))),
            () if labels is None else tuple(classes[label] for label in labels[places]),
        )
        for places in groups.values()
    ]
    order = ("leak", "conflict", "duplicates")
    return tuple(sorted(duplicates, key=lambda group: (order.index(group.kind), group.files)))


def _are_same(paths: Iterable[str | Path]) -> bool:
    digests = set()
    for path in paths:
        with Path(path).open("rb") as file:
            digests.add(hashlib.file_digest(file, "blake2b").digest())
    return len(digests) == 1


def _advice(tally: _Tally) -> dict[str, int | str]:
    rule = tally.rule
    advice: dict[str, int | str] = {}
    if rule.size is None and len(tally.sizes) > 1:
        advice["size"] = _proposed_size(tally.sizes)
    numbers = set(tally.channels)
    if rule.channels is None and len(numbers) > 1:
        usual = tally.channels.most_common(1)[0][0]
        advice["channels"] = usual if usual > 4 else 3 if numbers & {3, 4} else 1
    if rule.bits is None and len(tally.bits) > 1:
        advice["bits"] = 8
    if tally.broken or tally.unfit or ("channels" in advice and max(numbers) > 4):
        advice["unusable"] = "skip"
    return advice


def _proposed_size(sizes: Mapping[Size, Sequence[int]]) -> int:
    """Return the power of two that 95 % of the images reach without being enlarged."""
    sides = np.repeat([min(size) for size in sizes], [num for num, _ in sizes.values()])
    side = min(int(np.quantile(sides, 0.05, method="lower")), _LARGEST_PROPOSAL)
    return 1 << side.bit_length() - 1
