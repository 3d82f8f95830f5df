"""The capability to generate images that are addresses: by weights, seed, place and label."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from imgsynth import seeding
from imgsynth.images import grid
from imgsynth.methods.base import Method
from imgsynth.types import Batch

CHUNK = 64
"""Images generated at a time by :meth:`Sampler.sample`; part of what a seed means."""


class Sampler:
    """Capability of methods that generate images from latents.

    A class has it by inheriting it next to :class:`Method` and writing :meth:`latents` and
    :meth:`generate`.

    Attributes:
        num_classes: Classes the generator takes labels of; 0 if it takes none.
        latents_dtype: What latents are given to it as; None is the type of the weights.
    """

    num_classes: int = 0
    latents_dtype: torch.dtype | None = None

    def latents(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``(num, ...)`` latents on the CPU from a CPU generator (None: the default one)."""
        raise TypeError(f"{type(self).__name__} must define latents(num, generator).")

    def generate(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Turn latents into images ``(num, C, H, W)`` in [-1, 1]."""
        raise TypeError(f"{type(self).__name__} must define generate(latents, labels).")

    def why_no_samples(self) -> str | None:
        """Return why this one cannot sample after all, as a sentence; None if it can."""
        return None

    def sample(
        self,
        num: int,
        labels: Tensor | int | None = None,
        *,
        seed: int = 0,
        ema: bool = True,
    ) -> Tensor:
        """Generate images that depend on the weights, the seed, their place and label alone.

        Images are made in chunks of 64, chunk c from latents seeded by (seed, c). Image i is
        therefore the same whether 10 or 10,000 are asked for.

        Args:
            num: How many.
            labels: ``(num,)`` int64, or one label for all. None: every class in turn, so that
                ten columns of a grid show ten classes.
            seed: Chooses the latents.
            ema: Whether to use the averaged weights.

        Returns:
            ``(num, C, H, W)`` in [-1, 1], on the method's device.

        Raises:
            ValueError: If ``num`` is below 1, or the labels do not fit.

        Example:
            >>> # images = method.sample(100, labels=3, seed=1)
        """
        return torch.cat(list(self.sample_chunks(num, labels, seed=seed, ema=ema)))

    def sample_chunks(
        self,
        num: int,
        labels: Tensor | int | None = None,
        *,
        seed: int = 0,
        ema: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[Tensor]:
        """Yield what :meth:`sample` returns in chunks, for more images than memory holds.

        Args:
            num: As in :meth:`sample`; so are the others that are not named here.
            labels: Of all images.
            seed: Chooses the latents.
            ema: Whether to use the averaged weights.
            rank: Of several devices that share the work, the one that asks.
            world_size: How many they are. Device r gets the chunks r, r + world_size...
        """
        assert isinstance(self, Method)
        labels = self._sample_labels(num, labels)
        for chunk, start in list(enumerate(range(0, num, CHUNK)))[rank::world_size]:
            latents = self.latents(CHUNK, seeding.generator(seed, "latents", chunk))
            wanted = None
            if labels is not None:
                part = labels[start : start + CHUNK]
                wanted = nn.functional.pad(part, (0, CHUNK - len(part))).to(self.device)
            devices = [self.device] if self.device.type == "cuda" else []
            with self.evaluating(ema=ema), torch.random.fork_rng(devices):
                # for generators that draw noise of their own
                seeding.seed_default_generators(seed, "generate", chunk)
                # with precision="bf16-true" the weights are not float32
                latents = latents.to(self.device, self.latents_dtype or self.dtype)  # type: ignore[arg-type]
                images = self.generate(latents, wanted)
            if len(images) != CHUNK:
                raise ValueError(
                    f"{type(self).__name__}.generate() was given {CHUNK} latents and returned "
                    f"{len(images)} images; expected one an image."
                )
            yield images[: num - start]

    def labels_of(self, batch: Batch) -> Tensor | None:
        """Return a batch's labels if the networks take labels, else None."""
        if not self.num_classes:
            return None
        if "label" not in batch:
            raise ValueError(
                f"The networks are conditional (num_classes = {self.num_classes}), but the batch "
                f"has no 'label', only {sorted(batch)}."
            )
        return batch["label"]

    def sample_sheet(self, rows: int = 8) -> Tensor:
        """Return a grid ``(C, H, W)`` of samples from fixed latents, a class a column if there are.

        Of images that are neither gray, RGB nor RGBA the first channels are shown.
        """
        columns = self.num_classes if 0 < self.num_classes <= 20 else 8
        return grid(shown(self.sample(rows * columns, seed=0)), columns=columns)

    def _sample_labels(self, num: int, labels: Tensor | int | None) -> Tensor | None:
        if num < 1:
            raise ValueError(f"The number of samples must be at least 1, got {num}.")
        if not self.num_classes:
            if labels is not None:
                raise ValueError("The generator is unconditional: it takes no labels.")
            return None
        if labels is None:
            return torch.arange(num) % self.num_classes
        if isinstance(labels, int):
            labels = torch.full((num,), labels)
        labels = torch.as_tensor(labels).cpu()
        if labels.shape != (num,) or labels.dtype != torch.int64:
            shape = tuple(labels.shape)
            raise ValueError(
                f"labels must be int64 of shape ({num},), got {labels.dtype} of shape {shape}."
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            wrong = low if low < 0 else high
            raise ValueError(f"labels must be between 0 and {self.num_classes - 1}, got {wrong}.")
        return labels


def shown(images: Tensor) -> Tensor:
    """Return the channels of images ``(B, C, H, W)`` that can be shown: 1, 3 or 4."""
    channels = images.shape[1]
    return images if channels in {1, 3, 4} else images[:, : 3 if channels > 4 else 1]


def stated(network: nn.Module, attribute: str) -> Any:  # noqa: ANN401
    """Return what a network states about itself, None where it says nothing."""
    value = getattr(network, attribute, None)
    return tuple(value) if isinstance(value, list) else value


def latent_dim_of(generator: nn.Module, given: int | None = None, owner: str = "generator") -> int:
    """Take the length of a latent from the generator: its attribute, else its first layer."""
    stated = getattr(generator, "latent_dim", None)
    if isinstance(stated, int):
        if given not in {None, stated}:
            raise ValueError(
                f"The {owner} has latent_dim = {stated}, got latent_dim = {given}; leave it out, "
                f"and build the {owner} with the length that you want."
            )
        return stated
    if given is not None:
        return given
    for module in generator.modules():
        if isinstance(module, nn.Linear):
            return module.in_features
        if isinstance(module, nn.modules.conv._ConvNd):
            break
    raise ValueError(
        f"How long is a latent of {type(generator).__name__}? It has no attribute latent_dim and "
        "does not start with a Linear layer; give latent_dim=..."
    )
