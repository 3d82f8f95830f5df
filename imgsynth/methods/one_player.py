"""Methods with one loss and one optimiser, by Lightning's automatic optimisation."""

from collections.abc import Mapping
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from imgsynth.describe import hash_of
from imgsynth.methods.base import Method
from imgsynth.optim import Adam, Optimizer, Schedule
from imgsynth.types import Batch, Losses

Protocols: TypeAlias = dict[str, dict[str, Any]]
"""What scores are measured by, as plain data with its ``hash``, by key."""


class OnePlayerMethod(Method):
    """Base of the methods that minimise one sum of terms: VAEs, classifiers, restoration.

    A subclass writes :meth:`losses`. The base sums the terms, reports ``train/<term>``, and sets
    the learning rate. Everything Lightning does for automatic optimisation works: accumulation
    and clipping are the Trainer's (``--trainer.gradient_clip_val 1``).

    Args:
        optimizer: Makes the optimiser of all parameters that require a gradient.
        schedule: Factor of the learning rate by images seen.
        **kwargs: To :class:`~imgsynth.methods.Method`.

    Example:
        An autoencoder is its loss:

        >>> class Autoencoder(OnePlayerMethod):
        ...     averaged = ("network",)
        ...
        ...     def __init__(self, network: nn.Module, **kwargs) -> None:
        ...         super().__init__(**kwargs)
        ...         self.network = network
        ...
        ...     def losses(self, batch: Batch) -> Losses:
        ...         images = batch["image"]
        ...         return {"l2": (self.network(images) - images).square().mean()}
        >>> Autoencoder(nn.Identity()).losses({"image": torch.zeros(2, 1, 8, 8)})
        {'l2': tensor(0.)}
    """

    def __init__(
        self,
        *,
        optimizer: Optimizer = Adam(lr=1e-3, beta1=0.9),
        schedule: Schedule = Schedule(),
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        self._factory = optimizer
        self._schedule = schedule

    def losses(self, batch: Batch) -> Losses:
        """Return the terms to minimise, named and weighted.

        Further figures are reported by ``self.meter.add("train", {...})``.
        """
        raise TypeError(f"{type(self).__name__} must define losses(batch).")

    def setup(self, stage: str) -> None:
        """Compare what the networks take with what the data holds, before the first step."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        for name, network in self.named_children():
            if name != "ema" and hasattr(data, "image_shape") and hasattr(data, "num_classes"):
                _compare(name, network, data)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimiser over the parameters that require gradients."""
        parameters = [p for p in self.parameters() if p.requires_grad]  # averages do not
        if not parameters:
            raise ValueError(
                f"{type(self).__name__} has no parameter that requires a gradient: there is "
                "nothing to train."
            )
        optimizer = self._factory(parameters)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate of the update that begins."""
        super().on_train_batch_start(batch, batch_idx)
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        factor = self._schedule.factor(self.images_seen, self.total_images)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the terms."""
        terms = self.losses(batch)
        self.meter.add("train", terms)
        return reduce(torch.add, terms.values())

    def protocols_of(self, scores: Mapping[str, Mapping[str, Any]], num: int) -> Protocols:
        """Return what scores of held-out images are measured by, for :meth:`report_scores`.

        Args:
            scores: By key, such as ``val/mse``: what a score depends on besides the images and
                the weights, as plain data.
            num: The images there were.

        Returns:
            By key; empty for images of an unknown origin, those of a plain loader.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "fingerprint_of"):
            return {}
        split = "val" if "val" in data.splits else "test"
        shared = {
            "real": {"split": split, "fingerprint": data.fingerprint_of(split), "num": num},
            "weights": "live" if self.ema is None else "averaged",
        }
        found = {k: {"score": k.partition("/")[2], **own, **shared} for k, own in scores.items()}
        return {key: {"hash": hash_of(protocol), **protocol} for key, protocol in found.items()}


def _compare(name: str, network: nn.Module, data: Any) -> None:  # noqa: ANN401
    """Refuse a network that was built for other images or classes than the data has."""
    shape = getattr(network, "image_shape", None)
    if shape is not None and tuple(shape) != tuple(data.image_shape):
        raise ValueError(
            f"The {name} has image_shape = {tuple(shape)}, but the data has "
            f"{tuple(data.image_shape)}; build it with image_shape=data.image_shape."
        )
    classes = getattr(network, "num_classes", None)
    if classes and classes != data.num_classes:
        has = f"{data.num_classes} classes" if data.num_classes else "no labels"
        raise ValueError(
            f"The {name} has num_classes = {classes}, but the data has {has}; build it with "
            "num_classes=data.num_classes."
        )
