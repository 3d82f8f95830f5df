"""The base of all datamodules: images in, a contract out."""

import copy
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional

from imgsynth.data import checks
from imgsynth.data.loader import ImageLoader, OrderedLoader
from imgsynth.data.source import Hashes, TensorSource
from imgsynth.describe import Described
from imgsynth.images import from_uint8
from imgsynth.seeding import generator, seed_default_generators
from imgsynth.types import Batch

Split: TypeAlias = tuple[Tensor, Tensor | None]
"""Images ``(N, C, H, W)`` in the source's dtype, and labels ``(N,)`` or None."""


class ImageDataModule(Described, LightningDataModule, ABC):
    """A data set: one tensor a split, in the source's dtype, in memory or in a file.

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
        limit: Train on at most this many of them; see :meth:`limit`.
        transforms: What happens to training images (and to no others), one module after the
            other, on the device: float ``(B, C, H, W)`` in [-1, 1] in and out. Random ones draw
            from torch's default generators, which are seeded for each batch.
        binarise: Draw black and white images: a pixel becomes white with its gray value as
            probability, as Bernoulli likelihoods need. Training images are drawn anew for each
            batch, on the device, after ``transforms``; those of other splits once, with a fixed
            seed. The reference of the training split stays gray. (Salakhutdinov & Murray 2008,
            "On the Quantitative Analysis of Deep Belief Networks".)

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
        limit: int | None = None,
        transforms: Sequence[nn.Module] | None = None,
        binarise: bool = False,
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
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.device_resident = device_resident
        self.train_indices = None if train_indices is None else [int(i) for i in train_indices]
        self.num_limit = limit
        self.transforms = list(transforms or ())
        self.binarise = binarise
        self._loaded: dict[str, TensorSource] = {}
        self._places: Tensor | None = None  # of the training images, in the whole split
        self._num_classes = 0
        self._train_loader: ImageLoader | None = None
        self._resume_state: dict[str, Any] | None = None
        self._earlier = np.empty(0, np.uint64)

    @abstractmethod
    def load_split(self, split: str) -> Split | TensorSource:
        """Read one split.

        Args:
            split: One of :attr:`splits`.

        Returns:
            Images ``(N, C, H, W)``, uint8 or uint16, in a fixed order; and their labels, whole
            numbers ``(N,)`` from 0, or None. Or both as a source, where the images are rows of a
            larger tensor, or in a file.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load and check all splits, once.

        Raises:
            ValueError: If the data is not what :meth:`load_split` promises.
        """
        if self._loaded:
            return
        train = self._checked("train")
        where = f"{type(self).__name__}, split 'train'"
        num_classes = checks.count_classes(train.labels, self.names, where)
        loaded = {"train": train}
        for split in self.splits:
            if split != "train":
                loaded[split] = self._checked(split)
            where = f"{type(self).__name__}, split {split!r}"
            checks.check_alike(loaded[split], train, where)
            checks.check_label_range(loaded[split].labels, num_classes, bool(self.names), where)
        if self.binarise:
            loaded |= {s: _binarised(loaded[s], s) for s in loaded if s != "train"}
        chosen = self.train_indices
        places = None if chosen is None else self._places_of(chosen, len(train))
        self._num_classes = num_classes
        self._loaded = loaded
        if places is not None:
            self._train_on(places)
        if self.num_limit is not None:
            self._train_on(_shares(loaded["train"], self.num_limit))

    def _checked(self, split: str) -> TensorSource:
        read = self.load_split(split)
        where = f"{type(self).__name__}, split {split!r}"
        if not isinstance(read, TensorSource):
            checks.check_images(read[0], where)
            read = TensorSource(read[0].contiguous(), read[1])
        if read.labels is not None:
            checks.check_labels(read.labels, len(read), where)
            read.labels = read.labels.to(torch.int64)
        return read

    def _train_on(self, places: Tensor) -> None:
        """Keep these of the present training images only."""
        self._loaded["train"] = self._loaded["train"].at(places)
        self._places = places if self._places is None else self._places[places]

    def _places_of(self, indices: list[int], num: int) -> Tensor:
        if not indices or min(indices) < 0 or max(indices) >= num:
            span = f"{min(indices)} to {max(indices)}" if indices else "none"
            raise ValueError(
                f"{type(self).__name__}: expected at least one index from 0 to {num - 1} "
                f"(the training split has {num:,} images), got {span}."
            )
        return torch.tensor(indices)

    def _split(self, split: str) -> TensorSource:
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
        channels, height, width = self._split("train").images.shape[1:]
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
        labels = self._split("train").labels
        if labels is None:
            return ()
        return tuple(torch.bincount(labels, minlength=self.num_classes).tolist())

    def num_images(self, split: str = "train") -> int:
        """Return the number of images of a split."""
        return len(self._split(split))

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
        source = self._split(split)
        for indices in torch.split(torch.arange(len(source)), batch_size or self.batch_size):
            batch = source.fetch(indices)
            yield batch["image"], batch.get("label")

    def subset(self, indices: Sequence[int] | Tensor) -> Self:
        """Return a datamodule of the same kind that trains on these images only.

        The other splits, the number of classes and their names stay.

        Args:
            indices: Places in this datamodule's training split, in the order to keep.

        Raises:
            ValueError: If there is none, or one is out of range.
        """
        places = self._places_of([int(i) for i in indices], len(self._split("train")))
        other = self._copy()
        other._train_on(places)
        assert other._places is not None
        other.train_indices, other.num_limit = other._places.tolist(), None
        other._arguments = {**self._arguments, "train_indices": other.train_indices, "limit": None}
        return other

    def limit(self, num_images: int) -> Self:
        """Return a datamodule of the same kind that trains on at most this many images.

        Which ones does not depend on the run's seed. The shares of the classes stay, as nearly as
        whole images allow, and the first 100 are among the first 1,000. The other splits stay.

        Args:
            num_images: How many, at least 1.

        Raises:
            ValueError: If it is less than 1.
        """
        if num_images < 1:
            raise ValueError(f"limit must be at least 1, got {num_images}.")
        places = _shares(self._split("train"), num_images)
        if self.num_limit is not None:  # what is left is not the first of a new choice
            return self.subset(places)
        other = self._copy()
        other._train_on(places)
        other.num_limit = num_images
        other._arguments = {**self._arguments, "limit": num_images}
        return other

    def _copy(self) -> Self:
        other = copy.copy(self)
        other._loaded = dict(self._loaded)
        other._train_loader = other._resume_state = other.trainer = None
        return other

    def fingerprint(self, split: str) -> Hashes:
        """Return a hash of each image's content, uint64 ``(N,)``, in order.

        See :func:`~imgsynth.data.source.hash_images`. A checkpoint holds those of the images it
        was trained on, so that it can always be said which they were.

        Raises:
            ValueError: If there is no such split.

        Example:
            >>> from imgsynth.data import Digits
            >>> data = Digits()
            >>> np.isin(data.fingerprint("test"), data.fingerprint("train")).any()
            np.False_
        """
        return self._split(split).hashes()

    def fingerprint_of(self, split: str) -> str:
        """Return one hash of a whole split: its images, their order and their labels.

        Raises:
            ValueError: If there is no such split.
        """
        digest = hashlib.blake2b(self.fingerprint(split).astype("<u8").data, digest_size=16)
        labels = self._split(split).labels
        if labels is not None:
            digest.update(labels.numpy().astype("<i8", copy=False).data)
        return digest.hexdigest()

    def train_dataloader(self) -> ImageLoader:
        """Return the loader of the training split; see :class:`~imgsynth.data.loader.ImageLoader`.

        Raises:
            ValueError: If a step needs more images than the split has, or if the trainer is set
                to reload the loader (each epoch has a new order without that).
        """
        source = self._split("train")
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
        self._train_loader = ImageLoader(
            source.to(self._residence(source)),
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
        source = self._split(split)
        if len(source) < world_size:  # a device without images would let the others wait for ever
            raise ValueError(
                f"The split {split!r} has {len(source)} images for {world_size} devices, and each "
                "needs one; give it more, or train without it (--trainer.limit_val_batches 0)."
            )
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

    def _residence(self, source: TensorSource) -> torch.device:
        """Decide where the training images are kept."""
        here = source.device
        if self.trainer is None or self.num_workers or self.device_resident is False:
            return here
        device = self.trainer.strategy.root_device
        if self.device_resident:
            return device
        if device.type != "cuda":
            return here
        free, _ = torch.cuda.mem_get_info(device)
        return device if source.nbytes <= free / 4 else here

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn the images, now on the device, into float in [-1, 1]; transform training images."""
        module = None if self.trainer is None else self.trainer.lightning_module
        dtype = getattr(module, "dtype", torch.float32)  # another with precision="bf16-true"
        batch = {
            k: from_uint8(v, dtype) if v.dtype in checks.DTYPES else v for k, v in batch.items()
        }
        loader = self._train_loader
        if (
            (self.transforms or self.binarise)
            and loader is not None
            and getattr(self.trainer, "training", False)
        ):
            # The loader's place is the number of the batch, also when a run is resumed.
            seed_default_generators(
                loader.seed, "transforms", loader.rank, loader.epoch, loader.position
            )
            for transform in self.transforms:
                batch["image"] = transform(batch["image"])
            if self.binarise:
                images = batch["image"]
                drawn = torch.rand(images.shape, device=images.device, dtype=torch.float32)
                is_white = drawn.mul_(2).sub_(1) < images
                batch["image"] = is_white.to(images.dtype).mul_(2).sub_(1)  # where() takes longer
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the training loader's place, for the checkpoint.

        Lightning saves and restores the loader as well, but not if the checkpoint was written
        at the end of an epoch.
        """
        if self._train_loader is None:
            return {}
        # Signed, as torch has few operations for uint64.
        current = torch.from_numpy(self.fingerprint("train").view(np.int64))
        earlier = torch.from_numpy(self._earlier.view(np.int64))
        return {
            "train": self._train_loader.state_dict(),
            "trained_on": current,
            "trained_on_earlier": earlier,
            "fingerprint": self.fingerprint_of("train"),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the place for the loader that a resumed fit will ask for."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        self._resume_state = state_dict.get("train")
        if "trained_on" in state_dict:
            self._compare(state_dict)

    def _compare(self, state_dict: dict[str, Any]) -> None:
        """Warn if a resumed run goes on with other images, and keep what it saw before."""
        before = state_dict["trained_on"].numpy().view(np.uint64)
        earlier = state_dict["trained_on_earlier"].numpy().view(np.uint64)
        now = self.fingerprint("train")
        self._earlier = np.setdiff1d(np.concatenate([before, earlier]), now)
        if len(before) != len(now) or self.fingerprint_of("train") == state_dict["fingerprint"]:
            return  # the loader refuses another number
        num = int((before != now).sum())
        what = f"{num:,} of the {len(now):,} training images" if num else "The training labels"
        rank_zero_warn(
            f"{what} are not those that the checkpoint was trained on: the run goes on with "
            "others, not exactly where it was.",
            stacklevel=4,
        )

    def teardown(self, stage: str) -> None:
        """Free the worker processes and the device's memory after training."""
        if stage == "fit" and self._train_loader is not None:
            self._train_loader.close()
            self._train_loader = None


def _binarised(source: TensorSource, split: str) -> TensorSource:
    """Draw black and white images with a fixed seed."""
    white = torch.iinfo(source.images.dtype).max
    drawer = generator(0, "binarise", split)
    parts = []
    for indices in torch.split(torch.arange(len(source)), 1000):
        images = source.fetch(indices)["image"]
        is_white = torch.rand(images.shape, generator=drawer) < images.float() / white
        parts.append((is_white * white).to(images.dtype))
    return TensorSource(torch.cat(parts), source.labels)


def _shares(source: TensorSource, num_images: int) -> Tensor:
    """Choose images so that classes keep their shares, in the order of the split.

    The k-th of a class with n images in a fixed permutation has the key (k + 1/2) / n; those with
    the smallest keys are taken.
    """
    order = torch.randperm(len(source), generator=generator(0, "limit"))
    if source.labels is not None:
        keys = torch.empty(len(order), dtype=torch.float64)
        labels = source.labels[order]
        for label in range(int(labels.max()) + 1):
            places = (labels == label).nonzero().flatten()
            keys[places] = (torch.arange(len(places)) + 0.5).double() / len(places)
        order = order[keys.argsort(stable=True)]
    return order[:num_images].sort().values


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
