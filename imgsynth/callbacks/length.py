"""The length of a run, given in images."""

import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from imgsynth.callbacks.base import method_of
from imgsynth.methods.base import Method
from imgsynth.types import Count, batch_size, parse_count


class Length(Callback):
    """End the run once the method has seen a number of images, on any number of devices.

    Sets the Trainer's ``max_steps``, rounded up to whole updates, and lifts its limit of epochs.
    A resumed run counts the images it saw before: with the same length it stops where it would
    have stopped, with a larger one it goes on, and a finished run ends at once.

    Args:
        images: Real images to see, such as ``"200k"``.

    Raises:
        ValueError: If ``images`` is no positive count.

    Example:
        >>> length = Length("200k")
        >>> # Trainer(callbacks=[length], max_epochs=-1).fit(method, data)
    """

    def __init__(self, images: Count) -> None:
        self.images = parse_count(images, "images")
        if self.images < 1:
            raise ValueError(f"images must be at least 1, got {images!r}.")
        self._per_update: int | None = None
        self._set: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the limit before optimisers are made, as schedulers may ask for it."""
        if stage != "fit":
            return
        if trainer.max_steps not in {-1, self._set} and not _is_trial(trainer):
            warnings.warn(
                f"max_steps={trainer.max_steps} is ignored: Length({self.images}) decides.",
                stacklevel=2,
            )
        self._per_update = None
        method = method_of(pl_module)
        data: Any = getattr(trainer, "datamodule", None)
        if hasattr(data, "fingerprint") and isinstance(getattr(data, "batch_size", None), int):
            self._per_update = data.batch_size * method.batches_per_step * trainer.world_size
        self._apply(trainer, method)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the limit again, now that a checkpoint has told the images seen."""
        self._apply(trainer, method_of(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the limit again, now that the loader can be asked for its batch size."""
        loader: Any = trainer.train_dataloader
        per_update = getattr(loader, "images_per_step", None)  # on all devices
        if per_update is None and isinstance(getattr(loader, "batch_size", None), int):
            per_update = loader.batch_size * trainer.world_size
        self._per_update = per_update or self._per_update
        self._apply(trainer, method_of(pl_module))

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Set the limit from the first batch, if nothing else told its size."""
        if self._per_update is None:
            self._per_update = batch_size(batch) * trainer.world_size
            self._apply(trainer, method_of(pl_module))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Set the limit again, if a loader's last batch was smaller than the others."""
        method = method_of(pl_module)
        left = (self._set or 0) - method.updates
        if method.images_seen + left * (self._per_update or 1) != method.total_images:
            self._apply(trainer, method)

    def _apply(self, trainer: Trainer, method: Method) -> None:
        if _is_trial(trainer):
            return
        # An update consumes at least one image; so much is known before the batch size is.
        per_update = self._per_update or 1
        updates = -(-max(0, self.images - method.images_seen) // per_update)
        self._set = method.updates + updates
        trainer.fit_loop.epoch_loop.max_steps = self._set
        trainer.fit_loop.max_epochs = -1
        if self._per_update is not None or not updates:
            method.total_images = method.images_seen + updates * per_update


def _is_trial(trainer: Trainer) -> bool:
    """Say whether ``fast_dev_run`` decides the length."""
    return bool(getattr(trainer, "fast_dev_run", False))
