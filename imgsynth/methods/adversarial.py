"""The engine of all two-player methods: who moves when, on which fakes, and what is counted."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from imgsynth import seeding
from imgsynth.methods.base import Method
from imgsynth.optim import Adam, Optimizer, Schedule
from imgsynth.types import Batch, Losses, batch_size


class AdversarialMethod(Method):
    """Two players, a generator and a discriminator, each with its own loss and optimiser.

    One ``training_step`` is one generator update and ``discriminator_steps`` discriminator
    updates, each on real images of its own. The fakes of the last discriminator update serve the
    generator too, so a step makes them once. A subclass writes :meth:`fakes`,
    :meth:`discriminator_loss` and :meth:`generator_loss`, and nothing about optimisers,
    gradients, averaging, logging or resuming.

    Args:
        generator: Makes images. A ``ModuleDict`` where there are several; they stay one player.
        discriminator: Judges images; a ``ModuleDict`` likewise.
        augment: Applied to real and fake images alike before the discriminator; must be
            differentiable. None leaves them as they are.
        generator_optimizer: Makes the generator's optimiser.
        discriminator_optimizer: Makes the discriminator's optimiser.
        generator_schedule: Factor of the generator's learning rate by images seen.
        discriminator_schedule: Factor of the discriminator's learning rate by images seen.
        discriminator_steps: Discriminator updates for each generator update.
        generator_clip: Largest gradient norm of the generator; None does not clip.
        discriminator_clip: Largest gradient norm of the discriminator.
        accumulate: Parts into which each batch is cut, to save memory. Gradients add up to those
            of the whole batch, batch statistics are those of a part. The generator's fakes
            are then made again from the same random numbers.
        **kwargs: To :class:`Method`.

    Attributes:
        generator_first: Whether the generator moves before the discriminator.
    """

    averaged = ("generator",)
    generator_first = False
    automatic_optimization = False

    generator: nn.Module
    discriminator: nn.Module
    augment: nn.Module

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        augment: nn.Module | None = None,
        generator_optimizer: Optimizer = Adam(),
        discriminator_optimizer: Optimizer = Adam(),
        generator_schedule: Schedule = Schedule(),
        discriminator_schedule: Schedule = Schedule(),
        discriminator_steps: int = 1,
        generator_clip: float | None = None,
        discriminator_clip: float | None = None,
        accumulate: int = 1,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        counts = {"discriminator_steps": discriminator_steps, "accumulate": accumulate}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}.")
        for name, clip in (("generator", generator_clip), ("discriminator", discriminator_clip)):
            if clip is not None and clip <= 0:
                raise ValueError(f"{name}_clip must be above 0, or None for none, got {clip}.")
        self.generator = generator
        self.discriminator = discriminator
        self.augment = augment if augment is not None else nn.Identity()
        self._factories = (generator_optimizer, discriminator_optimizer)
        self._schedules = (generator_schedule, discriminator_schedule)
        self._clips = (generator_clip, discriminator_clip)
        self.batches_per_step = discriminator_steps
        self.accumulate = accumulate

    # -- what a subclass writes ---------------------------------------------------------------

    def fakes(self, batch: Batch) -> Batch:
        """Generate images for one update, with graph; as many as the batch holds real ones."""
        raise TypeError(f"{type(self).__name__} must define fakes(batch).")

    def discriminator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        """Return the discriminator's named, weighted terms. The fakes arrive detached."""
        raise TypeError(f"{type(self).__name__} must define discriminator_loss(batch, fakes).")

    def generator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        """Return the generator's named, weighted terms.

        The fakes are those the discriminator saw last, with graph; the discriminator is frozen.
        """
        raise TypeError(f"{type(self).__name__} must define generator_loss(batch, fakes).")

    def augmented(self, images: Tensor) -> Tensor:
        """Return images after :attr:`augment`; gradients reach them.

        Under mixed precision it computes in float32: bfloat16 keeps 3 digits, too few for
        positions and colours.
        """
        island = torch.is_autocast_enabled(images.device.type)
        with torch.autocast(images.device.type, enabled=False) if island else nullcontext():
            augmented: Tensor = self.augment(images.float() if island else images)
        return augmented

    # -- the engine ---------------------------------------------------------------------------

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Make one optimiser a player, over the parameters that require gradients."""
        optimizers = []
        players = {"generator": self.generator, "discriminator": self.discriminator}
        for (name, player), factory in zip(players.items(), self._factories, strict=True):
            parameters = [p for p in player.parameters() if p.requires_grad]
            if not parameters:
                raise ValueError(f"The {name} has no parameter that requires a gradient.")
            optimizer = factory(parameters)
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
            optimizers.append(optimizer)
        return optimizers

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the discriminator ``discriminator_steps`` times and the generator once."""
        images = batch_size(batch)
        self._begin(images)
        self._schedule()
        parts = self._cut(batch, "discriminator_steps", self.batches_per_step)
        for index, part in enumerate(parts):
            chunks = self._cut(part, "accumulate", self.accumulate)
            last = index == self.batches_per_step - 1
            with_graph = last and len(chunks) == 1
            fakes = [self._fakes(chunk, index, i, with_graph) for i, chunk in enumerate(chunks)]
            if last and self.generator_first:
                self._update_generator(chunks, fakes, index)
            detached = [{k: v.detach() for k, v in fake.items()} for fake in fakes]
            self._update("discriminator", self.discriminator_loss, chunks, detached, index)
            if last and not self.generator_first:
                self._update_generator(chunks, fakes, index)
        self._updated(images)

    def _optimizers(self) -> list[LightningOptimizer]:
        """Return the generator's optimiser and the discriminator's."""
        both = self.optimizers()
        assert isinstance(both, list)
        return both

    def _cut(self, batch: Batch, what: str, parts: int) -> list[Batch]:
        if parts == 1:
            return [batch]
        size = batch_size(batch)
        if size % parts:
            raise ValueError(
                f"A batch of {size} images cannot be cut into {what} = {parts} equal parts."
                + (
                    " Use a datamodule of imgsynth, or a loader whose batches hold "
                    "discriminator_steps * batch_size images."
                    if what == "discriminator_steps"
                    else " Choose a batch size that is a multiple."
                )
            )
        pieces = {key: value.chunk(parts) for key, value in batch.items()}
        return [{key: value[i] for key, value in pieces.items()} for i in range(parts)]

    def _fakes(self, chunk: Batch, part: int, index: int, with_graph: bool) -> Batch:
        self._seed_chunk("fakes", part, index)  # the generator's update makes the same ones again
        with self._timed("fakes"), torch.set_grad_enabled(with_graph):
            return self.fakes(chunk)

    def _seed_chunk(self, *tags: int | str) -> None:
        """With accumulation, what is done twice for a chunk draws the same random numbers."""
        if self.accumulate > 1:
            seeding.seed_default_generators(self.seed, self.global_rank, self.updates, *tags)

    def _update_generator(self, chunks: list[Batch], fakes: list[Batch], part: int) -> None:
        remade: Iterable[Batch] = fakes
        if len(chunks) > 1:
            remade = (self._fakes(c, part, i, True) for i, c in enumerate(chunks))
        with self._frozen(1):
            self._update("generator", self.generator_loss, chunks, remade, part)

    def _update(
        self,
        player: str,
        loss: Callable[[Batch, Batch], Losses],
        chunks: list[Batch],
        fakes: Iterable[Batch],
        part: int,
    ) -> None:
        optimizer = self._optimizers()[0 if player == "generator" else 1]
        optimizer.zero_grad()
        for i, (chunk, fake) in enumerate(zip(chunks, fakes, strict=True)):
            self._seed_chunk(player, part, i)
            with self._timed(player):
                losses = loss(chunk, fake)
                self.manual_backward(self._total(losses, player) / len(chunks))
            self.meter.add(f"train/{player}", losses, 1.0 / len(chunks))
        with self._timed("optimiser"):
            if player == "generator":
                optimizer.step()  # counted: one generator update is one global_step
            else:  # the same hooks, precision and clipping, but not counted
                self.trainer.strategy.optimizer_step(optimizer.optimizer, _no_closure)

    def _total(self, losses: Losses, player: str) -> Tensor:
        if not losses:
            raise ValueError(f"{type(self).__name__}.{player}_loss returned no terms.")
        for name, value in losses.items():
            if not isinstance(value, Tensor) or value.ndim:
                shape = getattr(value, "shape", None)
                came = type(value).__name__ if shape is None else f"shape {tuple(shape)}"
                raise ValueError(
                    f"{type(self).__name__}.{player}_loss: the term {name!r} must be a scalar "
                    f"tensor, got {came}; take its mean or its sum."
                )
        return sum(losses.values())  # type: ignore[return-value]

    @contextmanager
    def _frozen(self, index: int) -> Iterator[None]:
        """Keep gradients from a player's parameters; those frozen by an author stay frozen."""
        groups = self._optimizers()[index].param_groups
        frozen = [p for group in groups for p in group["params"] if p.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def _schedule(self) -> None:
        for optimizer, schedule in zip(self._optimizers(), self._schedules, strict=True):
            factor = schedule.factor(self.images_seen, self.total_images)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip here, where gradients are unscaled under mixed precision too."""
        for own, clip in zip(self._optimizers(), self._clips, strict=True):
            if clip is not None and own.optimizer is optimizer:
                self.clip_gradients(optimizer, clip, "norm")


def _no_closure() -> None:
    """What ``strategy.optimizer_step`` calls before the step; the gradients are there already."""
