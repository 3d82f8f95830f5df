"""Batches by indexing, in an order that can be continued exactly.

The order of the training images is one endless stream, a pure function of the seed: epoch after
epoch, each a new permutation. A loader's whole state is therefore its place in that stream, and
it is counted where a batch is handed out, not where a worker prepares it.
"""

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imgsynth.data.source import Source
from imgsynth.seeding import generator
from imgsynth.types import Batch


class _Fetch(Dataset[Batch]):
    """What a worker process runs: one item is one batch."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, indices: list[int]) -> Batch:
        return self.source.fetch(torch.tensor(indices, device=self.source.device))


def _unchanged(batch: Any) -> Any:  # noqa: ANN401
    return batch


def _leave_interrupts_to_parent(_: int) -> None:
    # Ctrl-C reaches every process of the terminal; training may finish its step before it stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_workers(source: Source, indices: Iterator[Tensor], num_workers: int) -> Iterator[Batch]:
    batches: DataLoader[Batch] = DataLoader(
        _Fetch(source),
        sampler=(block.tolist() for block in indices),
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=num_workers,
        worker_init_fn=_leave_interrupts_to_parent,
        generator=torch.Generator(),  # its own, so that torch's default generator stays untouched
    )
    return iter(batches)


class ImageLoader:
    """Training batches in a shuffled order that can be saved and continued exactly.

    Epoch e is the permutation f(seed, e) of all images, cut into blocks of one step: rank r takes
    every ``world_size``-th image of a block, starting with the r-th. All ranks make the same
    number of steps, no image comes twice in an epoch, and what is left at its end (less than one
    step) is dropped. The union over the ranks depends on ``batch_size * batches_per_step *
    world_size`` only, not on how it is split.

    An iteration yields ``len(loader)`` batches from where the last one stopped, so a Lightning
    epoch cut short by ``limit_train_batches`` loses no images. Lightning saves and restores
    the state by itself.

    Args:
        source: The images.
        batch_size: Images of a micro-batch on one device.
        batches_per_step: Micro-batches a step consumes; a batch holds this many times
            ``batch_size`` images.
        seed: Decides the order. A loaded state brings its own.
        rank: Which of the devices this is.
        world_size: How many devices share the images.
        num_workers: Processes that prepare batches ahead; 0 prepares them here. The batches are
            the same.

    Raises:
        ValueError: If the images are fewer than one step needs.

    Example:
        >>> from imgsynth.data.source import TensorSource
        >>> loader = ImageLoader(TensorSource(torch.zeros(10, 1, 8, 8, dtype=torch.uint8)), 4)
        >>> [len(batch["image"]) for batch in loader]
        [4, 4]
        >>> loader.state_dict()["epoch"]
        1
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        batches_per_step: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        self.source = source
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self.images_per_step = batch_size * batches_per_step * world_size
        if self.images_per_step > len(source):
            largest = len(source) // (batches_per_step * world_size)
            advice = f"lower batch_size to {largest} or less" if largest else "use fewer of them"
            raise ValueError(
                f"One step needs {self.images_per_step:,} images (batch_size {batch_size} x "
                f"{batches_per_step} micro-batches x {world_size} devices), but the training split "
                f"has {len(source):,}; {advice}."
            )
        self.epoch = 0
        self.position = 0
        self._batches: Iterator[Batch] | None = None

    def __len__(self) -> int:
        """Return the number of steps an epoch has, the same on every rank."""
        return len(self.source) // self.images_per_step

    def __iter__(self) -> Iterator[Batch]:
        """Yield the next ``len(self)`` batches of the stream."""
        for _ in range(len(self)):
            if self._batches is None:
                self._batches = self._stream()
            batch = next(self._batches)
            # Counted before the batch is handed out: a checkpoint written during its step
            # continues with the next one, and after the last batch with the next epoch.
            self.epoch, self.position = self._after(self.epoch, self.position)
            yield batch

    def _stream(self) -> Iterator[Batch]:
        indices = self._indices(self.epoch, self.position)
        if self.num_workers:
            return _in_workers(self.source, indices, self.num_workers)
        return map(self.source.fetch, indices)

    def _indices(self, epoch: int, position: int) -> Iterator[Tensor]:
        while True:
            order = torch.randperm(len(self.source), generator=generator(self.seed, "order", epoch))
            order = order.to("cpu" if self.num_workers else self.source.device)
            current = epoch
            while epoch == current:
                block = order[position : position + self.images_per_step]
                yield block[self.rank :: self.world_size]
                epoch, position = self._after(epoch, position)

    def _after(self, epoch: int, position: int) -> tuple[int, int]:
        position += self.images_per_step
        if position + self.images_per_step > len(self.source):
            return epoch + 1, 0
        return epoch, position

    def close(self) -> None:
        """End the worker processes; the next iteration starts new ones."""
        self._batches = None

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the stream, the same on every rank.

        Returns:
            ``seed``; ``epoch``; ``position``, the images of this epoch already handed out to all
            ranks together; ``num_images`` of the split.
        """
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "num_images": len(self.source),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was saved, with its seed.

        The step may have another size (another number of devices, say): the next batch starts at
        the same image of the same permutation.

        Raises:
            ValueError: If the state belongs to a training split of another size.
        """
        if state["num_images"] != len(self.source):
            raise ValueError(
                f"The checkpoint belongs to a training split of {state['num_images']:,} images, "
                f"this one has {len(self.source):,}, so its order cannot be continued; resume "
                "with the same data, or start a new run from the checkpoint's weights."
            )
        self.close()
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        if self.position + self.images_per_step > len(self.source):
            self.epoch, self.position = self.epoch + 1, 0


class OrderedLoader:
    """Batches of a split in its own order, each image exactly once over all ranks.

    Rank r gets the images r, r + world_size, ...; nothing is dropped and nothing is padded, so
    the last batch may be smaller and the ranks' counts may differ by one.

    Args:
        source: The images.
        batch_size: Images of a batch.
        rank: Which of the devices this is.
        world_size: How many devices share the images.

    Example:
        >>> from imgsynth.data.source import TensorSource
        >>> loader = OrderedLoader(TensorSource(torch.zeros(10, 1, 8, 8, dtype=torch.uint8)), 4)
        >>> [len(batch["image"]) for batch in loader]
        [4, 4, 2]
    """

    def __init__(
        self, source: Source, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.source = source
        self.batch_size = batch_size
        self.indices = torch.arange(rank, len(source), world_size, device=source.device)

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, always from the first one."""
        return map(self.source.fetch, torch.split(self.indices, self.batch_size))
