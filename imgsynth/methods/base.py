"""What every method has in common, whatever its objective."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.profilers import Profiler
from torch import Tensor, nn

from imgsynth import seeding, strategies
from imgsynth.describe import Described, class_path, describe
from imgsynth.ema import Average, averaging_weight
from imgsynth.methods.meter import Meter
from imgsynth.types import Batch, Count, batch_size, parse_count


class NonFiniteError(FloatingPointError):
    """A loss term or a parameter became NaN or infinite."""


class Method(Described, LightningModule):
    """Base of all methods: averaged weights, images as the unit, named terms, exact resume.

    A subclass states which submodules generate (``averaged``) and writes ``training_step``, or
    inherits an engine that does. With automatic optimisation :meth:`_begin` and :meth:`_updated`
    are called around each update; a step that optimises by hand calls them itself.

    Args:
        ema_half_life: Half-life of the averaged weights in images; 0 turns averaging off.
        ema_ramp_up: The half-life is at most this times the images seen.

    Attributes:
        averaged: Names of the submodules that generate; the average follows these.
        reports: Keys of the scores that it reports itself, by :meth:`report_scores`.
        rising: Those of which more is better.
        batches_per_step: Micro-batches that one ``training_step`` consumes. The loader delivers
            that many times the batch size.
        ema: The averaged copies by name, made by :meth:`configure_model`; None without averaging.
        updates: Updates done; equals ``trainer.global_step``.
        images_seen: Real images consumed, on all devices.
        total_images: The run's length in images; None if it has none.
        seed: The run's seed. Every random number in a step is a function of it, the rank and
            the number of the update.
        latest: The means last reported, by key.
        scored: When a score was last reported, in images seen, and the hash of what it was
            measured by (empty if nobody said), by key.
    """

    averaged: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()
    rising: tuple[str, ...] = ()
    batches_per_step: int = 1
    ema: Average | None

    def __init__(self, *, ema_half_life: Count = "10k", ema_ramp_up: float | None = 0.05) -> None:
        super().__init__()
        self._ema_half_life = parse_count(ema_half_life, "ema_half_life")
        if ema_ramp_up is not None and ema_ramp_up <= 0:
            raise ValueError(f"ema_ramp_up must be above 0, or None for none, got {ema_ramp_up}.")
        self._ema_ramp_up = ema_ramp_up
        self._live: dict[str, nn.Module] | None = None
        self.ema = None
        self.updates = 0
        self.images_seen = 0
        self.total_images: int | None = None
        self.seed = 0
        # Hashes (as int64) of the images that earlier runs trained the weights on.
        self.trained_before = self._trained_on = torch.empty(0, dtype=torch.int64)
        self.meter = Meter()
        self.latest: dict[str, float] = {}
        self.scored: dict[str, tuple[int, str]] = {}
        self.description: dict[str, Any] | None = None
        self._state: dict[str, Any] | None = None
        self._pending = self._micro_batches = 0  # of the update that is being accumulated

    # -- life cycle ---------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Make the averaged copies; harmless when called again."""
        if self.ema is None and self.averaged and self._ema_half_life:
            self.ema = Average({name: getattr(self, name) for name in self.averaged})

    def setup(self, stage: str) -> None:
        """Start counting at 0 and agree on the run's seed; a checkpoint may still say otherwise.

        An author's ``setup`` must call this one.

        Raises:
            ValueError: If the Trainer's strategy cannot train this method.
        """
        if stage == "fit":
            if not torch.cuda.is_available():
                # Lightning's; it lets each step of an optimiser look for a driver: 0.35 ms
                os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
            strategies.adopt(
                self.trainer.strategy, type(self).__name__, automatic=self.automatic_optimization
            )
            self.trained_before = torch.cat([self.trained_before, self._trained_on])
            self.updates = self.images_seen = 0
            self.scored = {}
            self.total_images = None
            self.seed = int(self.trainer.strategy.broadcast(seeding.run_seed()))

    def on_fit_start(self) -> None:
        """Restore what :meth:`on_load_checkpoint` found, now that the device is known."""
        if not self.training:  # imgsynth.load returns methods in evaluation mode
            self.train()
        hashes = getattr(getattr(self.trainer, "datamodule", None), "fingerprint", None)
        if hashes is not None:  # for a later fit, on other data
            self._trained_on = torch.from_numpy(hashes("train").view("int64"))
        self.meter.reset()
        if self._state is not None:
            self.meter.load_state_dict(self._state["meter"], self.device)
            self._state = None

    def on_train_end(self) -> None:
        """Look at the window that is still open: NaN must not end a run unnoticed."""
        self.check_finite()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the counters, the open window and how the method was built, as plain data."""
        if self._live is not None:
            raise RuntimeError("A checkpoint saved inside ema_weights() would lose the live ones.")
        if not self.trainer.interrupted:  # else other devices may have ended
            self.synchronise()  # in place: the weights were collected before
        checkpoint["imgsynth"] = {
            "method": self.describe(),
            "seed": self.seed,
            "updates": self.updates,
            "images_seen": self.images_seen,
            "meter": self.meter.state_dict(),
            "trained_before": self.trained_before,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the counters back; refuse a checkpoint of another class."""
        state = checkpoint.get("imgsynth")
        if state is None:
            raise ValueError(
                "The checkpoint has no 'imgsynth' section: it was not saved by a method of "
                "imgsynth, or the method's on_save_checkpoint did not call super()."
            )
        saved, own = state["method"]["class_path"], class_path(type(self))
        if saved != own:
            raise ValueError(f"The checkpoint holds {saved}, but this run trains {own}.")
        self.seed = state["seed"]
        self.updates = state["updates"]
        self.images_seen = state["images_seen"]
        self.trained_before = state.get("trained_before", self.trained_before)
        self._state = state

    def describe(self) -> dict[str, Any]:
        """Return how this method was built: ``{class_path, init_args}``, plain data."""
        described: dict[str, Any] = self.description or describe(self)
        return described

    # -- the step -----------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Automatic optimisation: seed each micro-batch, and count its images."""
        if self.automatic_optimization:
            images = batch_size(batch)
            self._begin((images * self.trainer.accumulate_grad_batches), self._micro_batches)
            self._pending += images
            self._micro_batches += 1

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Automatic optimisation: step, and note that an update is done."""
        super().optimizer_step(*args, **kwargs)
        self._updated(self._pending)
        self._pending = self._micro_batches = 0

    def _begin(self, images: int, *tags: int | str) -> None:
        """Before each update: seed the step, and learn the length of the run from the first one.

        Args:
            images: Real images that one update consumes on this device.
            tags: Tell apart what is seeded more than once within an update.
        """
        seeding.seed_default_generators(self.seed, self.global_rank, self.updates, *tags)
        if self.total_images is None:
            steps = self.trainer.max_steps
            if steps < 0 and self.trainer.max_epochs not in {None, -1}:
                steps = int(self.trainer.estimated_stepping_batches)
            if steps >= 0:
                self.total_images = steps * images * self.trainer.world_size

    def _updated(self, images: int) -> None:
        """After each update: count, average, and report when a row is due.

        Args:
            images: Real images which the update consumed on this device.
        """
        images *= self.trainer.world_size
        self.updates += 1
        self.images_seen += images
        if self.ema is not None:
            half_life, ramp_up = self._ema_half_life, self._ema_ramp_up
            weight = averaging_weight(images, self.images_seen, half_life, ramp_up)
            with self._timed("averages"):
                self.ema.follow(self._live_modules(), weight)
        if self.updates % self.log_every == 0:
            with self._timed("record"):
                self._report()

    def _timed(self, part: str) -> AbstractContextManager[None]:
        """Name a part of the step for the Trainer's profiler; costs next to nothing without one."""
        profiler: Profiler = self.trainer.profiler  # type: ignore[attr-defined]
        return profiler.profile(part)

    @property
    def log_every(self) -> int:
        """Updates between two reports: the Trainer's ``log_every_n_steps``."""
        every: int = getattr(self.trainer, "log_every_n_steps", 0)
        return every or 50

    def _report(self) -> None:
        """Close the window: check it, hand its means to the loggers, the bar and callbacks."""
        means = self._means()
        self.meter.reset()
        progress = {"progress/images": self.images_seen, "progress/updates": self.updates}
        self.latest = {**means, **progress}
        for logger in self.loggers:
            logger.log_metrics(dict(self.latest), step=self.updates)
        self.trainer.callback_metrics.update({k: torch.tensor(v) for k, v in means.items()})

    def report_scores(
        self,
        scores: Mapping[str, float],
        protocols: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Hand scores of the present weights to the loggers and callbacks, on every rank.

        A :class:`~imgsynth.callbacks.Checkpoint` that monitors one of them saves if it is the best.

        Args:
            scores: By key, such as ``val/fid``; the same on all ranks.
            protocols: What they were measured by, as plain data with its ``hash``, by key.
        """
        hashes = {key: protocol["hash"] for key, protocol in (protocols or {}).items()}
        self.scored |= {key: (self.images_seen, hashes.get(key, "")) for key in scores}
        progress = {"progress/images": self.images_seen, "progress/updates": self.updates}
        for logger in self.loggers:
            if hasattr(logger, "log_protocols") and protocols:
                logger.log_protocols(protocols)
            logger.log_metrics({**scores, **progress}, step=self.updates)
        values = {k: torch.tensor(v, dtype=torch.float64) for k, v in scores.items()}
        self.trainer.callback_metrics.update(values)

    def _means(self) -> dict[str, float]:
        """Return the window's means over all ranks; raise if one is not finite."""
        self._share_window()
        means = self.meter.means()
        bad = [name for name, value in means.items() if not -float("inf") < value < float("inf")]
        if bad:
            raise NonFiniteError(
                f"{bad[0]} became {means[bad[0]]} by update {self.updates} ({self.images_seen} "
                "images). Checkpoints are from before; try a lower learning rate, gradient "
                "clipping or 32-bit precision."
            )
        return means

    def check_finite(self) -> None:
        """Raise if a term of the open window, a parameter or a buffer is not finite (a host sync).

        Every checkpoint is preceded by this, so that a good one is never replaced by NaN.

        Raises:
            NonFiniteError: Naming the term or parameter.
        """
        self._means()
        floats = {k: b for k, b in self.named_buffers() if b.is_floating_point()}
        tensors = {**dict(self.named_parameters()), **floats}
        names = list(tensors)
        flags = torch.stack([torch.isfinite(t).all() for t in tensors.values()]).float()
        finite = self._over_ranks(flags, "min").tolist()
        if not all(finite):
            raise NonFiniteError(
                f"{names[finite.index(False)]!r} is not finite after update "
                f"{self.updates}; nothing was saved. Try a lower learning rate or clipping."
            )

    # -- several devices ----------------------------------------------------------------------

    def statistics(self) -> list[Tensor]:
        """Return what each device estimates from its own images, to be averaged over all.

        The running statistics of batch normalisation, live and averaged. Override it to add
        others; parameters are equal on all devices anyway.
        """
        norms = (m for m in self.modules() if isinstance(m, nn.modules.batchnorm._NormBase))
        found = (t for norm in norms for t in (norm.running_mean, norm.running_var))
        return [t for t in found if t is not None]

    def synchronise(self) -> None:
        """Average :meth:`statistics` and the open window of terms over the devices, in place.

        Happens before every checkpoint and every evaluation. All devices must call it; on one it
        does nothing.
        """
        if self._world_size == 1:
            return
        self._share_window()
        statistics = self.statistics()
        if statistics:
            flat = torch.cat([t.detach().reshape(-1).float() for t in statistics])
            parts = torch.split(self._over_ranks(flat, "mean"), [t.numel() for t in statistics])
            for tensor, part in zip(statistics, parts, strict=True):
                tensor.detach().copy_(part.view_as(tensor))

    def _share_window(self) -> None:
        """Give each rank the mean window; a term may be absent on some."""
        if self._world_size == 1:
            return
        told: list[Any] = [None] * self._world_size
        torch.distributed.all_gather_object(told, (self.images_seen, self.meter.keys))
        counts, keys = zip(*told, strict=True)
        if len(set(counts)) > 1:
            raise ValueError(
                f"The devices had batches of different sizes: by their counts {counts} images are "
                "seen. Use a loader that gives each device as many images (drop_last=True), or a "
                "datamodule of imgsynth."
            )
        if any(keys):
            union = dict.fromkeys(key for of_rank in keys for key in of_rank)
            flat = self.meter.flat(union, self.device)
            self.meter.restore(union, self._over_ranks(flat, "mean"))

    def _over_ranks(self, values: Tensor, operation: str) -> Tensor:
        if self._world_size > 1:
            values = self.trainer.strategy.reduce(values, reduce_op=operation)
        return values

    @property
    def _world_size(self) -> int:
        return 1 if self._trainer is None else self.trainer.world_size

    def on_validation_model_eval(self) -> None:
        """Evaluate the same model on each device."""
        self.synchronise()
        super().on_validation_model_eval()

    # -- averaged weights ---------------------------------------------------------------------

    def _live_modules(self) -> dict[str, nn.Module]:
        return self._live or {name: self._modules[name] for name in self.averaged}  # type: ignore[misc]

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Exchange the modules that generate for their averages, for the time of a ``with``.

        Every evaluation, sample and export runs inside it. Without averaging, or when already
        inside, nothing is exchanged.

        Example:
            >>> # with method.ema_weights():
            >>> #     images = method.generate(latents)
        """
        if self.ema is None or self._live is not None:
            yield
            return
        self._live = self._live_modules()
        try:
            for name in self.averaged:
                self._modules[name] = self.ema[name]
            yield
        finally:
            self._modules.update(self._live)
            self._live = None

    @contextmanager
    def evaluating(self, *, ema: bool = True) -> Iterator[None]:
        """Evaluation mode, no gradients and, with ``ema``, averaged weights; all put back after.

        The random streams of training are untouched by what happens inside, as each step seeds
        its own.
        """
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with torch.no_grad(), self.ema_weights() if ema else nullcontext():
                yield
        finally:
            for module, mode in modes:
                module.training = mode

    # -- what to show -------------------------------------------------------------------------

    def pictures(self, batch: Batch | None = None) -> Mapping[str, Tensor]:
        """Return what shows the state of training, as named grids ``(C, H, W)`` in [-1, 1].

        Called in evaluation mode with averaged weights. The record, W&B and the command line
        show the same ones.

        Args:
            batch: Real images, for methods that reconstruct or restore; None where there are none.
        """
        return {}
