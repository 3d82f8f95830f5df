"""Which split and which class each file of a folder belongs to."""

import hashlib
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
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

    def __post_init__(self) -> None:
        """Check what can be checked without the files."""
        if self.class_depth is not None and self.class_depth < -1:
            raise ValueError(f"class_depth must be at least -1, got {self.class_depth}.")
        if self.split_by is not None and not isinstance(self.split_by, Mapping):
            raise ValueError(
                "split_by must say which folder or list is which split, such as "
                f"{{'test': 'held_out.txt'}}, got {self.split_by!r}."
            )

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
            found = self._folders(inner, used, _below(tops, empty, inner))
        labels, classes = self._labels(found, used)
        if self.test_fraction or self.val_fraction:
            split_of = self._by_ratio(names, labels, split_of)
        splits = {
            split: np.array([i for i, s in enumerate(split_of) if s == split], np.int64)
            for split in ("train", "val", "test")
        }
        splits = {split: places for split, places in splits.items() if len(places)}
        organised = Organisation(splits, labels, classes)
        check_classes(self.root, organised)
        return organised

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
        if in_table and self.split_by:
            raise ValueError(
                "Splits are given twice, by the table and by split_by; give them once."
            )
        if in_table:
            return [None if row is None else self._known(row[1]) for row in rows], names
        if self.split_by:
            return self._by_parts(names, rows, self.split_by)
        halves = [name.partition("/") if "/" in name else ("", "", name) for name in names]
        tops = {top.lower() for top, _, _ in halves}
        if "train" in tops and tops <= set(SPLITS):
            found = [SPLITS[top.lower()] for top, _, _ in halves]
            pairs = zip(found, rows, strict=True)
            used: list[str | None] = [None if row is None else split for split, row in pairs]
            return used, [rest for _, _, rest in halves]
        return [None if row is None else "train" for row in rows], names

    def _known(self, split: str | None) -> str:
        if split is None or split.lower() not in SPLITS:
            raise ValueError(
                f"{self.table} has the split {split!r}; expected one of {', '.join(SPLITS)}."
            )
        return SPLITS[split.lower()]

    def _by_parts(
        self, names: Sequence[str], rows: list[Row | None], parts: Mapping[str, str]
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
        rest = None if "train" in parts else "train"
        pairs = zip(split_of, rows, strict=True)
        return [None if row is None else split or rest for split, row in pairs], inner

    def _by_ratio(
        self, names: Sequence[str], labels: Numbers | None, split_of: list[str | None]
    ) -> list[str | None]:
        """Take parts of ``train`` by a hash of the names.

        So they are the same on every machine, and hardly change as files are added.

        The k-th of a class with n files, in the order of their hashes, has the key (k + 1/2) / n;
        those with the smallest keys test, the next validate. So classes keep their shares.
        """
        twice = [s for s in ("test", "val") if getattr(self, f"{s}_fraction") and s in split_of]
        if twice:
            raise ValueError(
                f"The split {twice[0]!r} is given already; leave {twice[0]}_fraction out."
            )
        places = [i for i, split in enumerate(split_of) if split == "train"]
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
            single = len(tops) == 1 and not beside and self.class_names is None
            if tops == {()} or single:  # in the root, or in one folder
                return None
            self._refuse_splits_as_classes({parts[0] for parts in tops if parts})
            if () in tops:
                raise ValueError(
                    f"{self.root} holds images both directly and in folders (leaving those of the "
                    "splits aside), so it is not clear whether these are classes; pass "
                    "class_depth=0 if they are not, or move the images."
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
                "name the classes there are with class_names, or pass class_depth=0 if folders are "
                "no classes."
            )
        end = None if depth < 0 else depth
        return ["/".join(p[:end]) if u else None for p, u in zip(parents, used, strict=True)]

    def _refuse_splits_as_classes(self, folders: set[str]) -> None:
        """Refuse to train on what is called ``test``, beside folders that are no splits."""
        known = {folder for folder in folders if folder.lower() in SPLITS}
        if len({SPLITS[folder.lower()] for folder in known}) > 1 and self.split_by is None:
            other = f"also {min(folders - known)!r}" if folders - known else "no folder train"
            raise ValueError(
                f"{self.root} holds {' and '.join(sorted(known))}, and {other}, so it is not clear "
                "whether these are splits or classes; say which folder is which with split_by, or "
                "class_depth=1 if they are classes."
            )

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


def _below(splits: Iterable[str], empty: Iterable[str], inner: Iterable[str]) -> list[str]:
    """Return the empty folders below those of the splits that are empty in all of them."""
    below = {folder[len(top) :] for top in splits for folder in empty if folder.startswith(top)}
    filled = {"/".join(p.parts[:i]) for p in map(PurePosixPath, inner) for i in range(len(p.parts))}
    return sorted(below - filled - set(SPLITS))


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


def _shorter(names: Sequence[str]) -> dict[str, int]:
    """Return where each file is by its name, its stem and its path without suffix; -1: unclear."""
    places: dict[str, int] = {}
    for i, name in enumerate(names):
        path = PurePosixPath(name)
        for short in {path.name, path.stem, str(path.with_suffix(""))}:
            places[short] = -1 if short in places else i
    return places


def _places(files: Collection[str], names: Sequence[str], source: Path) -> list[int]:
    """Return where each file of a table or list is: by its path, its name or its stem."""
    by_path = {name: i for i, name in enumerate(names)}
    plain_names = [file.replace("\\", "/").removeprefix("./") for file in files]
    shorter = {} if all(name in by_path for name in plain_names) else _shorter(names)
    places: list[int] = []
    unknown: list[str] = []
    for file, plain in zip(files, plain_names, strict=True):
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
    file = root / part
    file = file if file.is_file() else Path(part).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"split_by names {part!r}, which is neither a folder with images in {root} nor a text "
            "file with the name of an image in each line."
        )
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    listed = [line.strip() for line in lines if line.strip()]
    if not listed:
        raise ValueError(f"The list {file} names no image.")
    return _places(listed, names, file)


def check_classes(root: Path, organised: Organisation) -> None:
    """Refuse a data set with nothing to train on, or nothing of a class that is tested.

    Raises:
        ValueError: If it is one.
    """
    splits, labels = organised.splits, organised.labels
    empty = [split for split, places in splits.items() if not len(places)]
    if empty or "train" not in splits:
        what = "train on" if "train" in empty or not empty else empty[0]
        raise ValueError(f"{root}: no image is left to {what}.")
    if labels is None:
        return
    trained = set(labels[splits["train"]].tolist())
    for split, places in splits.items():
        other = set(labels[places].tolist()) - trained
        if other:
            raise ValueError(
                f"{root}: the class {organised.classes[min(other)]!r} has images in {split}, but "
                "none to train on."
            )
