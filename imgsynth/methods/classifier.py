"""Classification: one network, cross-entropy, and how many held-out images it reads rightly."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgsynth.images import grid
from imgsynth.methods.one_player import OnePlayerMethod
from imgsynth.optim import AdamW, Optimizer
from imgsynth.types import Batch, Losses

_FRAME = 2


class Classifier(OnePlayerMethod):
    """A network that learns the labels of images.

    Reports ``train/cross_entropy`` and ``train/accuracy``; after each validation also
    ``val/cross_entropy`` and ``val/accuracy``, of averaged weights, over all images and devices.
    ``Checkpoint(monitor="val/accuracy", mode="max")`` keeps the best.

    Args:
        network: ``forward(images)`` to logits ``(B, num_classes)``.
        optimizer: Makes the optimiser.
        label_smoothing: Share of the target that is spread evenly over all classes, in training.
        augment: Applied to training images; None leaves them as they are.
        **kwargs: To :class:`~imgsynth.methods.OnePlayerMethod`.

    Raises:
        ValueError: If ``label_smoothing`` is not in [0, 1).

    Source:
        Bridle 1990, "Probabilistic Interpretation of Feedforward Classification Network Outputs"
        (softmax and cross-entropy); Szegedy et al. 2016, "Rethinking the Inception Architecture
        for Computer Vision", section 7 (label smoothing).

    Example:
        >>> from imgsynth.networks import SmallCNN
        >>> classifier = Classifier(SmallCNN((1, 8, 8), num_classes=10, width=8))
        >>> classifier.predict(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 10])
    """

    averaged = ("network",)
    reports = ("val/cross_entropy", "val/accuracy")
    rising = ("val/accuracy",)

    network: nn.Module
    augment: nn.Module

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: Optimizer = AdamW(lr=1e-3),
        label_smoothing: float = 0.0,
        augment: nn.Module | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(optimizer=optimizer, **kwargs)
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be at least 0 and below 1, got {label_smoothing}."
            )
        self.network = network
        self.label_smoothing = label_smoothing
        self.augment = augment if augment is not None else nn.Identity()
        self._sums: list[Tensor] = []  # of validation batches

    def setup(self, stage: str) -> None:
        """Compare what the network takes with what the data holds, before the first step."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "num_classes") and data.num_classes < 2:
            has = "one class only" if data.num_classes else "no labels"
            raise ValueError(
                f"Classifier learns to tell classes apart, but {type(data).__name__} has {has}; "
                "give data with labels."
            )
        super().setup(stage)

    def losses(self, batch: Batch) -> Losses:
        """Return the cross-entropy of augmented images."""
        labels = _labels(batch)
        logits = self.network(self._augmented(batch["image"]))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        right = (logits.argmax(1) == labels).float().mean()
        self.meter.add("train", {"accuracy": right})
        return {"cross_entropy": loss}

    def _augmented(self, images: Tensor) -> Tensor:
        """Augment in float32 under mixed precision, see :meth:`AdversarialMethod.augmented`."""
        island = torch.is_autocast_enabled(images.device.type)
        with torch.autocast(images.device.type, enabled=False) if island else nullcontext():
            augmented: Tensor = self.augment(images.float() if island else images)
        return augmented

    # -- held-out images ----------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Begin to count."""
        self._sums = [torch.zeros(3, device=self.device)]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what the averaged weights read rightly."""
        labels = _labels(batch)
        with self.ema_weights():
            logits = self.network(batch["image"]).float()
        entropy = F.cross_entropy(logits, labels, reduction="sum")
        right = (logits.argmax(1) == labels).sum()
        self._sums.append(torch.stack([entropy, right, torch.full_like(right, len(labels))]))

    def on_validation_epoch_end(self) -> None:
        """Report the means over the images of all devices."""
        sums = self._over_ranks(torch.stack(self._sums).sum(0), "sum")
        self._sums = []
        if self.trainer.sanity_checking:
            return
        entropy, right, num = sums.tolist()
        self.report_scores({"val/cross_entropy": entropy / num, "val/accuracy": right / num})

    # -- what it is for -----------------------------------------------------------------------

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` that the averaged weights give.

        Args:
            images: ``(B, C, H, W)`` in [-1, 1].
        """
        with self.evaluating():
            logits: Tensor = self.network(images)
        return logits

    def pictures(self, batch: Batch | None = None) -> dict[str, Tensor]:
        """Show the images given, misread ones first and framed in red."""
        if batch is None or "label" not in batch:
            return {}
        wrong = self.predict(batch["image"]).argmax(1) != batch["label"]
        order = wrong.long().argsort(descending=True, stable=True)
        images, wrong = _rgb(batch["image"].float())[order], wrong[order]
        scale = -(-48 // min(images.shape[2:]))
        images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        framed = F.pad(images, [_FRAME] * 4, value=-0.5)
        red = images.new_tensor([1.0, -0.8, -0.8]).view(3, 1, 1)
        inner = torch.zeros_like(framed[:1, :1])
        inner[..., _FRAME:-_FRAME, _FRAME:-_FRAME] = 1
        framed = torch.where((inner == 0) & wrong.view(-1, 1, 1, 1), red, framed)
        return {"predictions": grid(framed, scale=1)}


def _labels(batch: Batch) -> Tensor:
    if "label" not in batch:
        raise ValueError(
            f"Classifier needs batches with a 'label', got only {sorted(batch)}; give data with "
            "labels."
        )
    return batch["label"]


def _rgb(images: Tensor) -> Tensor:
    """Return three channels: gray ones repeated, further ones left out."""
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
