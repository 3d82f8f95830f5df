"""The base of all datamodules: images in, a contract out."""

import copy
import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import functional

from imgsynth.data.loader import ImageLoader, OrderedLoader, TensorSource, select
from imgsynth.describe import Described
from imgsynth.images import from_uint8
from imgsynth.types import Batch

Split = tuple[Tensor, Tensor | None]
"""Images ``(N, C, H, W)`` in the source's dtype, and labels ``(N,)`` or None."""

_DTYPES = (torch.uint8, torch.uint16)


class ImageDataModule(Described, LightningDataModule, ABC):
    """A data set that fits into memory: one tensor a split, in the source's dtype.

    Subclasses say what they hold (:meth:`load_split`); this class checks it, serves it in
    batches, and answers what the rest of the package asks. Batches are dicts with ``image`` and,
    if the data is labelled, ``label``. Images leave the loader in the source's dtype and become
    float in [-1, 1] on the device. What is known of the data (:attr:`image_shape`...) loads it
    when it is asked for first.

    Args:
        batch_size: Images of a micro-batch on one device. A training batch holds
            ``batches_per_step`` (an attribute of the method) times as many.
        num_workers: Processes that prepare training batches; the order does not depend on it. For
            images in memory 0 is fastest.
        seed: Decides the training order. None takes the run's seed.
        device_resident: Keep the training images on the training device. None does so if they
            take at most a quarter of its free memory.
        train_indices: Train on these images of the training split only; see :meth:`subset`.

    Raises:
        ValueError: If a number is out of range.

    Example:
        A data set is one method (and ``splits``, unless it has ``train`` and ``test``):

        >>> class Noise(ImageDataModule):
        ...     '''Images without content, as an example.'''
        ...
        ...     names = ("dark", "bright")
        ...
        ...     def load_split(self, split: str) -> Split:
        ...         labels = torch.arange(100) % 2
        ...         images = torch.randint(0, 128, (100, 3, 16, 16), dtype=torch.uint8)
        ...         return images + 127 * labels[:, None, None, None].to(torch.uint8), labels
        >>> data = Noise(batch_size=50)
        >>> data.image_shape, data.num_classes, data.class_counts
        ((3, 16, 16), 2, (50, 50))
    """

    names: tuple[str, ...] = ()
    """The classes' names in the order of their labels, where they have names."""

    splits: tuple[str, ...] = ("train", "test")
    """The parts the data has; ``train`` is always one of them."""

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
        device_resident: bool | None = None,
        train_indices: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {num_workers}.")
        if device_resident and num_workers:
            raise ValueError(
                f"device_resident=True needs no worker processes, got num_workers={num_workers}; "
                "set num_workers to 0 or leave device_resident out."
            )
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.device_resident = device_resident
        self.train_indices = None if train_indices is None else [int(i) for i in train_indices]
        self._loaded: dict[str, Split] = {}
        self._num_classes = 0
        self._train_loader: ImageLoader | None = None
        self._resume_state: dict[str, Any] | None = None

    @abstractmethod
    def load_split(self, split: str) -> Split:
        """Read one split.

        Args:
            split: One of :attr:`splits`.

        Returns:
            Images ``(N, C, H, W)``, uint8 or uint16, in a fixed order; and their labels, whole
            numbers ``(N,)`` from 0, or None.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load and check all splits, once.

        Raises:
            ValueError: If the data is not what :meth:`load_split` promises.
        """
        if self._loaded:
            return
        train = self._checked("train")
        num_classes = _count_classes(train[1], self.names, f"{type(self).__name__}, split 'train'")
        loaded = {"train": train}
        for split in self.splits:
            if split != "train":
                loaded[split] = self._checked(split)
            where = f"{type(self).__name__}, split {split!r}"
            _check_alike(loaded[split], train, where)
            _check_label_range(loaded[split][1], num_classes, bool(self.names), where)
        self._num_classes = num_classes
        if self.train_indices is not None:
            loaded["train"] = self._only(self.train_indices, train)
        self._loaded = loaded

    def _checked(self, split: str) -> Split:
        images, labels = self.load_split(split)
        where = f"{type(self).__name__}, split {split!r}"
        _check_images(images, where)
        if labels is not None:
            _check_labels(labels, len(images), where)
            labels = labels.to(torch.int64)
        return images.contiguous(), labels

    def _only(self, indices: list[int], split: Split) -> Split:
        images, labels = split
        if not indices or min(indices) < 0 or max(indices) >= len(images):
            span = f"{min(indices)} to {max(indices)}" if indices else "none"
            raise ValueError(
                f"{type(self).__name__}: expected at least one index from 0 to {len(images) - 1} "
                f"(the training split has {len(images):,} images), got {span}."
            )
        chosen = torch.tensor(indices)
        return select(images, chosen), None if labels is None else labels.index_select(0, chosen)

    def _split(self, split: str) -> Split:
        if split not in self.splits:
            raise ValueError(
                f"{type(self).__name__} has the splits {', '.join(self.splits)}; got {split!r}."
            )
        if not self._loaded:
            self.prepare_data()
            self.setup()
        return self._loaded[split]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self._split("train")[0].shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 if the data has no labels.

        A subset keeps the number of the whole, even if some class has no images in it.
        """
        self._split("train")
        return self._num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each label; the label itself where the data has no names."""
        return self.names or tuple(str(label) for label in range(self.num_classes))

    @property
    def class_counts(self) -> tuple[int, ...]:
        """The number of training images of each class; empty if the data has no labels."""
        labels = self._split("train")[1]
        if labels is None:
            return ()
        return tuple(torch.bincount(labels, minlength=self.num_classes).tolist())

    def num_images(self, split: str = "train") -> int:
        """Return the number of images of a split."""
        return len(self._split(split)[0])

    def reference(
        self, split: str, batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the real images of a split, in order, each once, on the CPU.

        Args:
            split: One of :attr:`splits`.
            batch_size: Images at a time; None takes the datamodule's.

        Yields:
            Images ``(B, C, H, W)`` in the source's dtype (uint8, or uint16) and labels ``(B,)``
            int64, or None.

        Raises:
            ValueError: If there is no such split.
        """
        images, labels = self._split(split)
        size = batch_size or self.batch_size
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            yield images[part], None if labels is None else labels[part]

    def subset(self, indices: Sequence[int] | Tensor) -> Self:
        """Return a datamodule of the same kind that trains on these images only.

        The other splits, the number of classes and their names stay.

        Args:
            indices: Places in this datamodule's training split, in the order to keep.

        Raises:
            ValueError: If there is none, or one is out of range.
        """
        train = self._split("train")
        chosen = [int(i) for i in indices]
        other = copy.copy(self)
        other._loaded = {**self._loaded, "train": self._only(chosen, train)}
        before = self.train_indices
        other.train_indices = chosen if before is None else [before[i] for i in chosen]
        other._arguments = {**self._arguments, "train_indices": other.train_indices}
        other._train_loader = other._resume_state = other.trainer = None
        return other

    def fingerprint(self, split: str) -> list[str]:
        """Return a hash of each image's content, in order.

        BLAKE2b (16 bytes, hexadecimal) over dtype, shape and little-endian pixels: equal for
        equal images, wherever and in whatever order they are stored.

        Raises:
            ValueError: If there is no such split.
        """
        images, _ = self._split(split)
        head = f"{images.dtype} {tuple(images.shape[1:])}".encode()
        pixels = images.numpy()
        pixels = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
        start = hashlib.blake2b(head, digest_size=16)
        hashes = []
        for image in pixels:
            digest = start.copy()
            digest.update(image.data)
            hashes.append(digest.hexdigest())
        return hashes

    def fingerprint_of(self, split: str) -> str:
        """Return one hash of a whole split: its images, their order and their labels.

        Raises:
            ValueError: If there is no such split.
        """
        digest = hashlib.blake2b("".join(self.fingerprint(split)).encode(), digest_size=16)
        labels = self._split(split)[1]
        if labels is not None:
            digest.update(labels.numpy().astype("<i8", copy=False).data)
        return digest.hexdigest()

    def train_dataloader(self) -> ImageLoader:
        """Return the loader of the training split; see :class:`~imgsynth.data.loader.ImageLoader`.

        Raises:
            ValueError: If a step needs more images than the split has, or if the trainer is set
                to reload the loader (each epoch has a new order without that).
        """
        images, labels = self._split("train")
        rank, world_size, batches_per_step, seed = 0, 1, 1, self._run_seed()
        if self.trainer is not None:
            if every := getattr(self.trainer, "reload_dataloaders_every_n_epochs", 0):
                raise ValueError(
                    f"reload_dataloaders_every_n_epochs must stay 0, got {every}: a new loader "
                    "would start the order again, and each epoch has a new order without it."
                )
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            batches_per_step = getattr(self.trainer.lightning_module, "batches_per_step", 1)
            seed = self.trainer.strategy.broadcast(seed)
        device = self._residence(images)
        self._train_loader = ImageLoader(
            TensorSource(images.to(device), None if labels is None else labels.to(device)),
            self.batch_size,
            batches_per_step=batches_per_step,
            seed=seed,
            rank=rank,
            world_size=world_size,
            num_workers=self.num_workers,
        )
        if self._resume_state is not None:
            self._train_loader.load_state_dict(self._resume_state)
            self._resume_state = None
        return self._train_loader

    def val_dataloader(self) -> OrderedLoader | list[OrderedLoader]:
        """Return the split ``val``, or ``test`` where there is none, in order; or an empty list."""
        return self._ordered("val" if "val" in self.splits else "test")

    def test_dataloader(self) -> OrderedLoader | list[OrderedLoader]:
        """Return the split ``test`` in order, or an empty list if there is none."""
        return self._ordered("test")

    def _ordered(self, split: str) -> OrderedLoader | list[OrderedLoader]:
        if split not in self.splits:
            return []
        rank, world_size = 0, 1
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        source = TensorSource(*self._split(split))
        return OrderedLoader(source, self.batch_size, rank=rank, world_size=world_size)

    def _run_seed(self) -> int:
        if self.seed is not None:
            return self.seed
        module = None if self.trainer is None else self.trainer.lightning_module
        seed = getattr(module, "seed", None)
        if isinstance(seed, int):
            return seed
        from_environment = os.environ.get("PL_GLOBAL_SEED")
        return int(from_environment) if from_environment else torch.initial_seed()

    def _residence(self, images: Tensor) -> torch.device:
        """Decide where the training images are kept."""
        here = images.device
        if self.trainer is None or self.num_workers or self.device_resident is False:
            return here
        device = self.trainer.strategy.root_device
        if self.device_resident:
            return device
        if device.type != "cuda":
            return here
        free, _ = torch.cuda.mem_get_info(device)
        return device if images.nbytes <= free / 4 else here

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn the images, now on the device, into float in [-1, 1]."""
        module = None if self.trainer is None else self.trainer.lightning_module
        dtype = getattr(module, "dtype", torch.float32)  # another with precision="bf16-true"
        return {k: from_uint8(v, dtype) if v.dtype in _DTYPES else v for k, v in batch.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the training loader's place, for the checkpoint.

        Lightning saves and restores the loader as well, but not if the checkpoint was written
        at the end of an epoch.
        """
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the place for the loader that a resumed fit will ask for."""
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._resume_state = state_dict.get("train")

    def teardown(self, stage: str) -> None:
        """Free the worker processes and the device's memory after training."""
        if stage == "fit" and self._train_loader is not None:
            self._train_loader.close()
            self._train_loader = None


def resize(images: Tensor, size: int | None) -> Tensor:
    """Resize uint8 images bilinearly (with antialiasing) to ``(N, C, size, size)``.

    Example:
        >>> resize(torch.full((1, 1, 8, 8), 7, dtype=torch.uint8), 16).unique()
        tensor([7], dtype=torch.uint8)
    """
    if size is None or images.shape[2:] == (size, size):
        return images
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    resized = functional.interpolate(
        images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.round().clamp(0, 255).to(torch.uint8)


def _check_images(images: Tensor, where: str) -> None:
    if not isinstance(images, Tensor):
        raise ValueError(
            f"{where}: expected load_split to return tensors, got {type(images).__name__}; "
            "convert arrays with torch.from_numpy."
        )
    if images.ndim != 4:
        raise ValueError(
            f"{where}: expected images of shape (N, C, H, W), got {tuple(images.shape)}."
        )
    if images.numel() == 0:
        raise ValueError(f"{where}: there are no images (shape {tuple(images.shape)}).")
    if images.dtype not in _DTYPES:
        raise ValueError(
            f"{where}: expected images of dtype uint8 (0 to 255) or uint16 (0 to 65,535), got "
            f"{images.dtype}; convert floats x in [0, 1] with (x * 255).round().astype('uint8') "
            "(tensors: .to(torch.uint8)), those in [-1, 1] with imgsynth.images.to_uint8(x)."
        )


def _check_labels(labels: Tensor, num_images: int, where: str) -> None:
    if labels.ndim != 1 or len(labels) != num_images:
        raise ValueError(
            f"{where}: expected one label per image, shape ({num_images},), got "
            f"{tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"{where}: expected labels that are whole numbers (dtype int64), got {labels.dtype}."
        )


def _check_alike(split: Split, train: Split, where: str) -> None:
    shape, expected = tuple(split[0].shape[1:]), tuple(train[0].shape[1:])
    if shape != expected:
        raise ValueError(
            f"{where}: images of shape {shape}, but those to train on have {expected}; bring both "
            "to one shape."
        )
    if (split[1] is None) != (train[1] is None):
        raise ValueError(
            f"{where}: {'no labels' if split[1] is None else 'labels'}, unlike the training "
            "split; pass labels for all splits or for none."
        )


def _count_classes(labels: Tensor | None, names: tuple[str, ...], where: str) -> int:
    if labels is None:
        if names:
            raise ValueError(f"{where}: {len(names)} class names but no labels; pass labels too.")
        return 0
    if names:
        return len(names)
    counts = torch.bincount(labels.clamp(min=0))
    if not counts.all():
        empty = ", ".join(str(label) for label in (counts == 0).nonzero().flatten().tolist()[:5])
        warnings.warn(
            f"{where}: no image has the label {empty}; labels should count from 0 without gaps, "
            "as a conditional generator learns nothing about an empty class.",
            stacklevel=4,
        )
    return len(counts)


def _check_label_range(labels: Tensor | None, num_classes: int, named: bool, where: str) -> None:
    if labels is None:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        classes = f"{num_classes} class names" if named else f"{num_classes} classes to train on"
        raise ValueError(
            f"{where}: labels from {low} to {high}, expected 0 to {num_classes - 1} "
            f"({classes}); labels count from 0."
        )
