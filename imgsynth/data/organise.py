"""Which split and which class each file of a folder belongs to."""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from imgsynth.data.scan import Numbers
from imgsynth.data.table import Row, read_table

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of folders and of a table's splits, and what they are called here."""


@dataclass(frozen=True)
class Organisation:
    """Splits and classes of files.

    Attributes:
        splits: Places of each split's files, in order.
        labels: The label of every file, -1 where it is in no split; or None.
        classes: The classes' names, in the order of their labels.
    """

    splits: Mapping[str, Numbers]
    labels: Numbers | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Organiser:
    """Finds splits and classes from names, folders and tables.

    Attributes:
        root: The folder, for messages and lists.
        table: A file of labels and splits; see :func:`~imgsynth.data.table.read_table`.
        class_depth: How many folders name the class; None: see ``ImageFolder``.
        class_names: The classes in order; None finds them.
        split_by: A folder or a list of files for each split.
        test_fraction: Part of the files to test on.
        val_fraction: Part of the files to validate on.
        allow_unlisted: Whether files without a row in the table are left out.
    """

    root: Path
    table: Path | None = None
    class_depth: int | None = None
    class_names: tuple[str, ...] | None = None
    split_by: Mapping[str, str] | None = None
    test_fraction: float = 0.0
    val_fraction: float = 0.0
    allow_unlisted: bool = False

    def __call__(self, names: Sequence[str], empty: Iterable[str] = ()) -> Organisation:
        """Organise files.

        Args:
            names: Their paths relative to the root, with ``/``, sorted.
            empty: Folders without images.

        Raises:
            FileNotFoundError: If a table or list is missing.
            ValueError: If splits or classes are not clear.
        """
        rows = self._rows(names)
        split_of, inner = self._splits(names, rows)
        used = np.array([split is not None for split in split_of], bool)
        found: list[str | None] | None = [None if row is None else row[0] for row in rows]
        if not any(found or ()):
            tops = {name.removesuffix(below) for name, below in zip(names, inner, strict=True)}
            found = self._folders(inner, used, _below(tops, empty))
        labels, classes = self._labels(found, used)
        if self.test_fraction or self.val_fraction:
            split_of = self._by_ratio(names, labels, split_of)
        splits = {
            split: np.array([i for i, s in enumerate(split_of) if s == split], np.int64)
            for split in ("train", "val", "test")
        }
        splits = {split: places for split, places in splits.items() if len(places)}
        _check(self.root, splits, labels, classes)
        return Organisation(splits, labels, classes)

    def _rows(self, names: Sequence[str]) -> list[Row | None]:
        """Return the row of each file; None for one that is left out."""
        if self.table is None:
            return [(None, None)] * len(names)
        table = read_table(self.table)
        rows: list[Row | None] = [None] * len(names)
        places = _places(table, names, self.table)
        for place, (file, row) in zip(places, table.items(), strict=True):
            if rows[place] not in {None, row}:
                raise ValueError(
                    f"{self.table} names {names[place]!r} twice, the second time as {file!r} with "
                    "another label or split."
                )
            rows[place] = row
        missing = [name for name, row in zip(names, rows, strict=True) if row is None]
        if missing and not self.allow_unlisted:
            raise ValueError(
                f"{len(missing):,} of the {len(names):,} images in {self.root} have no row in "
                f"{self.table}, such as {missing[0]!r}; add them, or leave them out with "
                "allow_unlisted=True."
            )
        return rows

    def _splits(
        self, names: Sequence[str], rows: list[Row | None]
    ) -> tuple[list[str | None], Sequence[str]]:
        """Return each file's split (None: not used) and its path below the split's folder."""
        in_table = any(row is not None and row[1] is not None for row in rows)
        ratio = bool(self.test_fraction or self.val_fraction)
        ways = {"the table": in_table, "split_by": bool(self.split_by), "a fraction": ratio}
        if sum(ways.values()) > 1:
            given = " and ".join(way for way, is_given in ways.items() if is_given)
            raise ValueError(f"Splits are given more than once, by {given}; give them once.")
        if in_table:
            return [None if row is None else self._known(row[1]) for row in rows], names
        if self.split_by:
            return self._by_parts(names, self.split_by)
        halves = [name.partition("/") if "/" in name else ("", "", name) for name in names]
        tops = {top.lower() for top, _, _ in halves}
        if self.table is None and not ratio and "train" in tops and tops <= set(SPLITS):
            return [SPLITS[top.lower()] for top, _, _ in halves], [rest for _, _, rest in halves]
        return [None if row is None else "train" for row in rows], names

    def _known(self, split: str | None) -> str:
        if split is None or split.lower() not in SPLITS:
            raise ValueError(
                f"{self.table} has the split {split!r}; expected one of {', '.join(SPLITS)}."
            )
        return SPLITS[split.lower()]

    def _by_parts(
        self, names: Sequence[str], parts: Mapping[str, str]
    ) -> tuple[list[str | None], list[str]]:
        split_of: list[str | None] = [None] * len(names)
        inner = list(names)
        for split, part in parts.items():
            if split not in {"train", "val", "test"}:
                raise ValueError(f"split_by names {split!r}; expected train, val or test.")
            folder = part.strip("/") + "/"
            places = [i for i, name in enumerate(names) if name.startswith(folder)]
            if not places:
                places = _listed(self.root, part, names)
            else:
                for i in places:
                    inner[i] = names[i][len(folder) :]
            for i in places:
                if split_of[i] not in {None, split}:
                    raise ValueError(f"{names[i]!r} is in the splits {split_of[i]} and {split}.")
                split_of[i] = split
        if "train" not in parts:
            split_of = [split or "train" for split in split_of]
        return split_of, inner

    def _by_ratio(
        self, names: Sequence[str], labels: Numbers | None, split_of: list[str | None]
    ) -> list[str | None]:
        """Split by a hash of the names: the same on every machine, and stable as files are added.

        The k-th of a class with n files, in the order of their hashes, has the key (k + 1/2) / n;
        those with the smallest keys test, the next validate. So classes keep their shares.
        """
        places = [i for i, split in enumerate(split_of) if split is not None]
        digests = {i: hashlib.blake2b(names[i].encode(errors="surrogateescape"), digest_size=8)
                   .digest() for i in places}  # fmt: skip
        counts: dict[int, int] = {}
        keys: dict[int, float] = {}
        places.sort(key=digests.__getitem__)
        for i in places:
            label = 0 if labels is None else int(labels[i])
            counts[label] = counts.get(label, 0) + 1
            keys[i] = counts[label] - 0.5
        for i in places:
            keys[i] /= counts[0 if labels is None else int(labels[i])]
        places.sort(key=keys.__getitem__)
        num_test = round(len(places) * self.test_fraction)
        num_val = round(len(places) * self.val_fraction)
        for number, i in enumerate(places):
            before = "val" if number < num_test + num_val else "train"
            split_of[i] = "test" if number < num_test else before
        lost = [s for s in ("test", "val") if getattr(self, f"{s}_fraction") and s not in split_of]
        if lost or "train" not in split_of:
            raise ValueError(
                f"test_fraction={self.test_fraction} and val_fraction={self.val_fraction} of "
                f"{len(places):,} images leave none for {(lost or ['train'])[0]}."
            )
        return split_of

    def _folders(
        self, inner: Sequence[str], used: np.ndarray[Any, np.dtype[np.bool_]], empty: list[str]
    ) -> list[str | None] | None:
        """Return the class of each file from its folders; None where they name none."""
        depth = self.class_depth
        parents = [PurePosixPath(name).parent.parts for name in inner]
        if depth is None:
            tops = {parts[:1] for parts, u in zip(parents, used, strict=True) if u}
            beside = any("/" not in folder for folder in empty)
            if tops == {()} or (len(tops) == 1 and not beside):  # in the root, or in one folder
                return None
            if () in tops:
                raise ValueError(
                    f"{self.root} holds images both directly and in folders, so it is not clear "
                    "whether the folders are classes; pass class_depth=0 if they are not, or move "
                    "the images."
                )
            depth = 1
        if depth == 0:
            return None
        least = max(depth, 1)
        shallow = [inner[i] for i in np.flatnonzero(used).tolist() if len(parents[i]) < least]
        if shallow:
            raise ValueError(
                f"class_depth={depth}: {len(shallow):,} images are in fewer folders, such as "
                f"{shallow[0]!r}."
            )
        hollow = [folder for folder in empty if depth in {-1, folder.count("/") + 1}]
        if hollow and self.class_names is None:
            raise ValueError(
                f"The class folder {hollow[0]!r} in {self.root} has no images"
                f"{f' ({len(hollow)} folders have none)' if len(hollow) > 1 else ''}; remove it, "
                "or name the classes there are with class_names."
            )
        end = None if depth < 0 else depth
        return ["/".join(p[:end]) if u else None for p, u in zip(parents, used, strict=True)]

    def _labels(
        self, found: list[str | None] | None, used: np.ndarray[Any, np.dtype[np.bool_]]
    ) -> tuple[Numbers | None, tuple[str, ...]]:
        if found is None:
            if self.class_names:
                raise ValueError(
                    f"class_names were given, but nothing in {self.root} says which image is of "
                    "which class; expected folders or a table with a column label."
                )
            return None, ()
        there = {name for name, u in zip(found, used, strict=True) if u and name is not None}
        numbers = all(name.isdecimal() for name in there)
        classes = self.class_names or tuple(sorted(there, key=int if numbers else None))
        _refuse_twins(classes)
        unknown = sorted(there - set(classes))
        if unknown:
            raise ValueError(
                f"{self.root} has the class {unknown[0]!r}, which is not among class_names "
                f"({', '.join(classes[:10])})."
            )
        label = {name: i for i, name in enumerate(classes)}
        values = [label[n] if u and n is not None else -1 for n, u in zip(found, used, strict=True)]
        return np.array(values, np.int64), classes


def _below(splits: Iterable[str], folders: Iterable[str]) -> list[str]:
    """Return each folder's path below the folder of its split (``""`` if there is none)."""
    prefixes = sorted(splits, key=len, reverse=True)
    found = [next((f[len(p) :] for p in prefixes if f.startswith(p)), f) for f in folders]
    return sorted({folder for folder in found if folder})


def _refuse_twins(classes: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in classes:
        plain = unicodedata.normalize("NFC", name).strip().casefold()
        if plain in seen:
            raise ValueError(
                f"The class names {seen[plain]!r} and {name!r} differ in case or spaces at most; "
                "give each class one name."
            )
        seen[plain] = name


def _places(files: Iterable[str], names: Sequence[str], source: Path) -> list[int]:
    """Return where each file of a table or list is: by its path, its name or its stem."""
    by_path = {name: i for i, name in enumerate(names)}
    shorter: dict[str, int] = {}
    for i, name in enumerate(names):
        path = PurePosixPath(name)
        for short in {path.name, path.stem, str(path.with_suffix(""))}:
            shorter[short] = -1 if short in shorter else i  # -1: two files have it
    places: list[int] = []
    unknown: list[str] = []
    for file in files:
        plain = file.replace("\\", "/").removeprefix("./")
        place = by_path.get(plain, shorter.get(plain, -1))
        if place < 0:
            unknown.append(file)
        places.append(place)
    if unknown:
        raise ValueError(
            f"{source} names {len(unknown):,} files that are not there, such as {unknown[0]!r}; "
            "name each by its path below the folder."
        )
    return places


def _listed(root: Path, part: str, names: Sequence[str]) -> list[int]:
    file = Path(part).expanduser()
    file = file if file.is_file() else root / part
    if not file.is_file():
        raise FileNotFoundError(
            f"split_by names {part!r}, which is neither a folder with images in {root} nor a text "
            "file with the name of an image in each line."
        )
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    return _places([line.strip() for line in lines if line.strip()], names, file)


def _check(
    root: Path, splits: Mapping[str, Numbers], labels: Numbers | None, classes: Sequence[str]
) -> None:
    if "train" not in splits:
        raise ValueError(f"{root}: no image is left to train on.")
    if labels is None:
        return
    trained = set(labels[splits["train"]].tolist())
    for split, places in splits.items():
        other = set(labels[places].tolist()) - trained
        if other:
            raise ValueError(
                f"{root}: the class {classes[min(other)]!r} has images in {split}, but none to "
                "train on."
            )
