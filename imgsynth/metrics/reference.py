"""Sets of images as scores see them, and those of real images kept on disk for all runs."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from imgsynth import seeding
from imgsynth.metrics import frechet, neighbours
from imgsynth.metrics.extractor import Extractor

T = TypeVar("T")

VERSION = 1
MOST_FEATURES = 50_000
"""Real images whose features are kept; mean and covariance are of all."""

BATCH = 64
"""Images that an extractor sees at a time. Part of a score's last digits."""


class Real(Protocol):
    """What is asked of a data set: any :class:`~imgsynth.data.ImageDataModule` answers it."""

    splits: tuple[str, ...]
    image_shape: tuple[int, int, int]

    def num_images(self, split: str) -> int: ...  # noqa: D102
    def fingerprint_of(self, split: str) -> str: ...  # noqa: D102
    def reference(  # noqa: D102
        self, split: str, batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]: ...


class FeatureSet:
    """The features of a set of images, and what scores need of them, computed once.

    Args:
        features: float32 ``(N, d)``.
        logits: float32 ``(N, k)``; None if the extractor has no classes.
        labels: int64 ``(N,)``; None if the images have none.
        gaussian: Mean and covariance, if they are of more images than ``features``.

    Example:
        >>> FeatureSet(torch.randn(100, 4)).gaussian.mean.shape
        torch.Size([4])
    """

    def __init__(
        self,
        features: Tensor,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
        gaussian: frechet.Gaussian | None = None,
    ) -> None:
        self.features = features
        self.logits = logits
        self.labels = labels
        self._gaussian = gaussian
        self._radii: dict[int, Tensor] = {}
        self._found: dict[tuple[str, int], tuple[FeatureSet, Any]] = {}

    def __len__(self) -> int:
        """Return how many images' features are here."""
        return len(self.features)

    @cached_property
    def gaussian(self) -> frechet.Gaussian:
        """Mean and covariance of the features."""
        if self._gaussian is not None:
            return self._gaussian
        moments = frechet.Moments()
        for part in torch.split(self.features, BATCH * 16):
            moments.add(part)
        return moments.gaussian()

    @cached_property
    def factor(self) -> Tensor:
        """A factor of the covariance; see :func:`~imgsynth.metrics.frechet.factor`."""
        return frechet.factor(self.gaussian.covariance)

    def radii(self, k: int) -> Tensor:
        """Return each image's distance to its k-th neighbour in the set."""
        if k not in self._radii:
            self._radii[k] = neighbours.radii(self.features, k)
        return self._radii[k]

    def once(self, name: str, other: "FeatureSet", compute: Callable[[], T]) -> T:
        """Compute what two scores share when the first asks for it."""
        key = (name, id(other))
        if key not in self._found:
            self._found[key] = (other, compute())  # the other, so that nothing else gets its id
        found: T = self._found[key][1]
        return found

    def at(self, places: Tensor) -> "FeatureSet":
        """Return the set of these images only."""
        logits, labels = self.logits, self.labels
        return FeatureSet(
            self.features[places],
            None if logits is None else logits[places],
            None if labels is None else labels[places],
        )


def to_eight_bits(images: Tensor) -> Tensor:
    """Return whole numbers as uint8: those of 16 bits are divided by 257 and rounded."""
    if images.dtype == torch.uint8:
        return images
    return images.to(torch.float32).div_(257).round_().to(torch.uint8)


class _StoredSet(FeatureSet):
    """A set whose statistics are files, of which some are computed when they are needed first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        base = {name: self._read(name) for name in ("features", "mean", "covariance")}
        self.about: dict[str, Any] = json.loads((folder / "about.json").read_text())
        missing = [f"{n}.npy" for n in self.about["files"] if not (folder / f"{n}.npy").exists()]
        if missing:
            raise FileNotFoundError(missing[0])
        gaussian = frechet.Gaussian(base["mean"], base["covariance"], self.about["num"])  # type: ignore[arg-type]
        super().__init__(base["features"], self._read("logits"), self._read("labels"), gaussian)  # type: ignore[arg-type]

    def _read(self, name: str) -> Tensor | None:
        path = self._folder / f"{name}.npy"
        return torch.from_numpy(np.load(path, allow_pickle=False)) if path.exists() else None

    def _kept(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return a file's contents; compute and keep them if there is no such file."""
        with contextlib.suppress(OSError, ValueError, EOFError):  # damaged
            found = self._read(name)
            if found is not None:
                return found
        made = compute()
        with contextlib.suppress(OSError):  # a full disk, a folder that is gone: next time again
            _save(self._folder / f"{name}.npy", made)
        return made

    @cached_property
    def factor(self) -> Tensor:
        return self._kept("factor", lambda: frechet.factor(self.gaussian.covariance))

    def radii(self, k: int) -> Tensor:
        if k not in self._radii:
            self._radii[k] = self._kept(f"radii-{k}", lambda: neighbours.radii(self.features, k))
        return self._radii[k]


def reference(data: Real, split: str, extractor: Extractor, folder: Path) -> FeatureSet:
    """Return the features of a split of real images, from the disk if they were needed before.

    Of several processes that need the same, on one machine or with one folder, one computes while
    the others wait. What is damaged is computed again. A folder that cannot be written costs a
    warning, and the time each time.

    Args:
        data: Where the images come from.
        split: Which of them.
        extractor: What makes features of them.
        folder: Where they are kept: ``references`` in it.
    """
    home = folder / "references" / key_of(data, split, extractor)
    failure: OSError | None = None
    with contextlib.ExitStack() as stack:
        found = _stored(home)
        if found is None:
            try:
                home.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_waiting(home.with_suffix(".lock"), split))
            except OSError as error:
                failure = error
            found = _stored(home)  # of another process, meanwhile
        if found is not None:
            return found
        made, about = _looked_at(data, split, extractor)
        try:
            if failure is None:
                _store(made, about, home)
                return _stored(home) or made
        except OSError as error:
            failure = error
    if failure is not None:
        warnings.warn(
            f"The features of the real images could not be kept in {home.parent} "
            f"({failure.strerror or failure}): they will be computed again.",
            stacklevel=2,
        )
    return made


def _stored(home: Path) -> FeatureSet | None:
    """Return what is on the disk, if it is there and whole."""
    try:
        return _StoredSet(home)
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None


def key_of(data: Real, split: str, extractor: Extractor) -> str:
    """Return a hash of everything that features depend on: images, order, extractor, size."""
    facts = {
        "version": VERSION,
        "extractor": extractor.identity(),
        "images": data.fingerprint_of(split),
        "num": data.num_images(split),
        "shape": list(data.image_shape),
        "kept": MOST_FEATURES,
        "probe": extractor.probe(data.image_shape),
    }
    text = json.dumps(facts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _waiting:  # noqa: N801  (used as a function)
    """A lock whose holder is waited for; says so once, if it takes longer."""

    def __init__(self, path: Path, split: str) -> None:
        self._lock = FileLock(path)
        self._split = split

    def __enter__(self) -> None:
        try:
            self._lock.acquire(timeout=10)
        except Timeout:
            tqdm.write(f"Waiting for another process that looks at the split {self._split!r}.")
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _looked_at(data: Real, split: str, extractor: Extractor) -> tuple[FeatureSet, dict[str, Any]]:
    """Look at all images of a split; return their features, and what they are of."""
    num = data.num_images(split)
    kept = _kept_places(num)
    moments = frechet.Moments()
    features, logits, labels = [], [], []
    start = 0
    bar = tqdm(total=num, unit=" images", desc=f"Real images ({split})", leave=False, disable=None)
    with bar:
        for images, truth in data.reference(split, BATCH):
            found, classes = extractor(to_eight_bits(images))
            found = found.cpu()
            moments.add(found)
            mine = kept[start : start + len(images)]
            features.append(found[mine])
            if classes is not None:
                logits.append(classes.cpu()[mine])
            if truth is not None:
                labels.append(truth[mine])
            start += len(images)
            bar.update(len(images))
    made = FeatureSet(
        torch.cat(features),
        torch.cat(logits) if logits else None,
        torch.cat(labels) if labels else None,
        moments.gaussian(),
    )
    about = {"num": num, "split": split, "extractor": extractor.identity()}
    return made, about | {"torch": torch.__version__, "images": data.fingerprint_of(split)}


def _store(made: FeatureSet, about: dict[str, Any], home: Path) -> None:
    """Write a set under its name, whole or not at all; the caller holds its lock."""
    for left in home.parent.glob(f"{home.name}.*.part"):  # of processes that were killed
        shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(".part", f"{home.name}.", home.parent))
    try:
        tensors = {"features": made.features, "logits": made.logits, "labels": made.labels}
        tensors |= {"mean": made.gaussian.mean, "covariance": made.gaussian.covariance}
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        for name, tensor in kept.items():
            _save(part / f"{name}.npy", tensor)
        about |= {"files": list(kept)}
        (part / "about.json").write_text(json.dumps(about, indent=2))
        part.chmod(0o755)  # mkdtemp's is for its owner alone
        shutil.rmtree(home, ignore_errors=True)  # damaged
        part.replace(home)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _kept_places(num: int) -> Tensor:
    """Say of each image whether its features are kept: the same ones each time."""
    keep = torch.ones(num, dtype=torch.bool)
    if num > MOST_FEATURES:
        order = torch.randperm(num, generator=seeding.generator(0, "reference"))
        keep[order[MOST_FEATURES:]] = False
    return keep


def _save(path: Path, values: Tensor) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.save(file, values.numpy(), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def halves(real: FeatureSet) -> Sequence[FeatureSet]:
    """Split a set in two, the same two each time."""
    order = torch.randperm(len(real), generator=seeding.generator(0, "halves"))
    return [real.at(places) for places in order.chunk(2)]
