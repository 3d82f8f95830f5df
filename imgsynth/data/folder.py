"""Any folder of images as a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from imgsynth.data.base import ImageDataModule
from imgsynth.data.build import cached
from imgsynth.data.cache import Cache
from imgsynth.data.organise import Organisation, Organiser, check_classes
from imgsynth.data.rule import Rule
from imgsynth.data.scan import Listing, scan
from imgsynth.data.source import TensorSource

_MOST_NAMED = 5


class ImageFolder(ImageDataModule):
    """The images of a folder, decoded once into a file that all processes share.

    Files: JPEG, PNG, WebP, BMP, GIF, TIFF, PPM and single arrays (.npy), also in folders within
    folders; 8 and 16 bits; palettes and EXIF orientation are resolved. Every image becomes
    ``(C, H, W)`` of one size by the rule that ``size``, ``fit``, ``channels`` and ``bits`` say.
    Where they are not given all files must agree. Of several pages or frames the first is taken.

    Splits: a table or ``split_by`` says them; else, if the root holds ``train`` (and ``val``,
    ``valid``, ``validation`` or ``test``) and no other folder, these are the splits.
    ``test_fraction`` and ``val_fraction`` take a part of each class of ``train``, chosen by a hash
    of the files' names.

    Classes: a table says them; else the first folder below the split's. All images in one folder
    are unlabelled.

    Decoded images are kept in a cache. It is built again when a file changes, is added or removed;
    what did not change is taken over.

    Args:
        root: The folder.
        size: Pixels a side, or (height, width). None keeps the source's.
        fit: How an image gets there if its shape is another. ``crop``: resized until it covers
            the size, then the centre is cut out. ``pad``: resized until it fits inside, on the
            background. ``stretch``: both sides resized. ``cut``: not resized, the centre is cut
            out, and smaller images cannot be used.
        interpolation: ``bilinear`` or ``bicubic``, both with antialiasing.
        channels: What all become: 1 (luma), 3 (gray is repeated), 4, 2 or the source's number.
        bits: What all become: 8 or 16 bits a channel.
        background: What transparent images and ``pad`` show behind, 0 (black) to 255.
        table: A .csv or .jsonl file with the columns ``file`` (or file_name, filename, path, image,
            id: a path below ``root``, a name or a name without suffix) and ``label`` (or class,
            category), ``split`` or both.
        class_depth: How many folders below the split's name the class, ``a/b`` for 2; -1 means
            all, 0 that folders are no classes. None: see above.
        class_names: The classes in the order of their labels. None: sorted by name.
        split_by: For each split a folder in ``root``, or a text file with a name in each line;
            without ``train``, the rest is trained on: ``{"test": "test.txt"}``.
        test_fraction: Part of the images to test on, 0 to 1.
        val_fraction: Part of the images to validate on, 0 to 1.
        allow_unlisted: Leave out files that have no row in ``table``, instead of refusing.
        unusable: ``refuse`` or ``skip`` files that are broken or too small; they are named.
        cache: Where decoded images are kept. None: ``$IMGSYNTH_CACHE``, or ``imgsynth`` in the
            user's cache folder.
        cache_gb: Gigabytes that all of it may take; the least recently used makes room.
        kwargs: What every :class:`~imgsynth.data.base.ImageDataModule` takes.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> # data = ImageFolder("photos", size=64, channels=3, test_fraction=0.1)
        >>> # data.image_shape, data.class_names, data.num_images("test")
        >>> # ((3, 64, 64), ('cat', 'dog'), 120)
    """

    def __init__(
        self,
        root: str | Path,
        size: int | tuple[int, int] | None = None,
        fit: Literal["crop", "pad", "stretch", "cut"] = "crop",
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        channels: int | None = None,
        bits: Literal[8, 16] | None = None,
        background: int = 255,
        table: str | Path | None = None,
        class_depth: int | None = None,
        class_names: Sequence[str] | None = None,
        split_by: Mapping[str, str] | None = None,
        test_fraction: float = 0.0,
        val_fraction: float = 0.0,
        allow_unlisted: bool = False,
        unusable: Literal["refuse", "skip"] = "refuse",
        cache: str | Path | None = None,
        cache_gb: float = 50.0,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        if cache_gb <= 0:
            raise ValueError(f"cache_gb must be above 0, got {cache_gb}.")
        if min(test_fraction, val_fraction) < 0 or test_fraction + val_fraction >= 1:
            raise ValueError(
                "test_fraction and val_fraction must be at least 0 and below 1 together, got "
                f"{test_fraction} and {val_fraction}."
            )
        if unusable not in {"refuse", "skip"}:
            raise ValueError(f"unusable must be refuse or skip, got {unusable!r}.")
        self.root = Path(root).expanduser()
        sides: Any = (size, size) if isinstance(size, int) else size
        self.rule = Rule(
            tuple(sides) if isinstance(sides, list) else sides,
            fit,
            interpolation,
            channels,
            bits,
            background,
        )
        self.organiser = Organiser(
            self.root,
            None if table is None else Path(table).expanduser(),
            class_depth,
            None if class_names is None else tuple(class_names),
            split_by,
            test_fraction,
            val_fraction,
            allow_unlisted,
        )
        self.unusable = unusable
        self.cache = None if cache is None else Path(cache).expanduser()
        self.cache_gb = cache_gb
        self._found: tuple[Listing, Organisation] | None = None
        self._cache: Cache | None = None

    def organise(self, listing: Listing) -> Organisation:
        """Say which split and class each file belongs to; for subclasses to override."""
        return self.organiser(listing.names, listing.empty)

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]
        """The parts the folder has."""
        return tuple(self._files()[1].splits)

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The classes' names in the order of their labels."""
        return self._files()[1].classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width; where the arguments say them, nothing is decoded for it."""
        if self.rule.size is None or self.rule.channels is None:
            return super().image_shape
        return (self.rule.channels, *self.rule.size)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 if the images have no labels."""
        return len(self.names)

    def _files(self) -> tuple[Listing, Organisation]:
        """Return the files that belong to a split, and which."""
        if self._found is None:
            listing = scan(self.root)
            organised = self.organise(listing)
            used = np.sort(np.concatenate(list(organised.splits.values())))
            place = np.full(len(listing), -1)
            place[used] = np.arange(len(used))
            splits = {split: place[places] for split, places in organised.splits.items()}
            labels = None if organised.labels is None else organised.labels[used]
            self._found = listing.at(used), Organisation(splits, labels, organised.classes)
        return self._found

    def prepare_data(self) -> None:
        """Decode the images, unless that was done before."""
        self._decoded()

    def _decoded(self) -> Cache:
        if self._cache is None:
            listing, _ = self._files()
            cache = cached(listing, self.rule, self.cache, self.cache_gb * 1e9)
            if cache.unusable:
                self._leave_out(cache.unusable)
            self._cache = cache
        return self._cache

    def _leave_out(self, unusable: Mapping[int, str]) -> None:
        listing, organised = self._files()
        named = [f"{listing.names[i]!r} {why}" for i, why in list(unusable.items())[:_MOST_NAMED]]
        more = len(unusable) - len(named)
        text = (
            f"{len(unusable):,} of the {len(listing):,} images in {self.root} cannot be used: "
            f"{'; '.join(named)}{f'; and {more:,} more' if more else ''}."
        )
        if self.unusable == "refuse":
            raise ValueError(f"{text} Mend or remove them, or leave them out with unusable='skip'.")
        rank_zero_warn(f"{text} They are left out.", stacklevel=4)
        lost = list(unusable)
        splits = {s: places[~np.isin(places, lost)] for s, places in organised.splits.items()}
        organised = replace(organised, splits=splits)
        check_classes(self.root, organised)
        labels = organised.labels
        if labels is not None:
            gone = set(labels.tolist()) - set(labels[splits["train"]].tolist())
            if gone:
                raise ValueError(
                    f"{text} So none is left of the class {organised.classes[min(gone)]!r} to "
                    "train on."
                )
        self._found = listing, organised

    def load_split(self, split: str) -> TensorSource:
        """Return the images of one split, in the order of their files' names."""
        cache = self._decoded()
        organised = self._files()[1]
        places = organised.splits[split]
        labels = None if organised.labels is None else organised.labels[places]
        rows = torch.from_numpy(places)
        return cache.source(rows, None if labels is None else torch.from_numpy(labels))

    def files(self, split: str = "train") -> list[str]:
        """Return the path of each image of a split, relative to the root, in order.

        Raises:
            ValueError: If there is no such split.
        """
        self._split(split)
        listing, organised = self._files()
        places = organised.splits[split]
        if split == "train" and self._places is not None:
            places = places[self._places.numpy()]
        return [listing.names[i] for i in places.tolist()]
