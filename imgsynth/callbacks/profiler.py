"""Where the time of a training step goes."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities import rank_zero_only

_WARM_UP = 5
_BAR = 30
_OTHER = "other"
_RECORD = "record"
_FETCH, _STEP, _EPOCH = "train_dataloader_next", "run_training_batch", "run_training_epoch"

_PLAIN = {_EPOCH: _OTHER, _STEP: _OTHER, "optimizer_step": "optimiser", "save_checkpoint": _RECORD}
"""Lightning's actions without a bracket; others of this kind are parts that a method names."""

_HOOKS = {
    _FETCH: "data",
    "on_before_batch_transfer": "data",
    "batch_to_device": "data",
    "on_after_batch_transfer": "data",
    "training_step": "training step",
    "backward": "training step",
    "optimizer_step": "optimiser",
}
"""Lightning's actions in brackets, by their last word; the rest belongs to what is around it."""

_BEFORE = ("data", "fakes", "discriminator", "generator", "training step")
_AFTER = ("optimiser", "averages", _RECORD, _OTHER)
"""The order of the table; parts that a method adds come in between."""

_ADVICE = {
    "data": (0.3, "more num_workers prepare images in parallel; device_resident needs no loading."),
    _RECORD: (
        0.2,
        "larger log_every_n_steps, samples.every and checkpoint.every record more seldom. (In a "
        "short run sheets and checkpoints come closer together.)",
    ),
}
"""The share above which something is off, and what helps."""


@dataclass
class _Steps:
    """A number of steps together."""

    number: int = 0
    images: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: "_Steps") -> None:
        self.number += other.number
        self.images += other.images
        for part, seconds in other.seconds.items():
            self.seconds[part] += seconds


class StepProfiler(Profiler):
    """Print at the end of training which part of a step takes how long.

    Parts are those that a method names (fakes, discriminator, generator, optimiser, averages,
    record), loading data, and everything else as "other"; where Lightning optimises, forward and
    backward pass are the "training step". Sheets, rows and checkpoints are "record". A part that
    runs within another one counts for itself only, so that the parts add up to the step. A method
    of your own adds parts by ``with self.trainer.profiler.profile("encoder"):``.

    A step lasts from one batch's loading to the next one's, in wall time; the first few are left
    out if enough others follow. On a GPU each part begins and ends with a wait for the device, as
    its time would otherwise be found in another part: that slows training.

    Args:
        clock: Returns seconds.

    Example:
        >>> profiler = StepProfiler()
        >>> # Trainer(profiler=profiler).fit(method, data)
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self._clock = clock
        self._lightning_module: Any = None  # the Trainer sets it
        self._reset()

    def _reset(self) -> None:
        self._first, self._later, self._pending = _Steps(), _Steps(), _Steps()
        self._running: list[tuple[str, str]] = []
        self._since: float | None = None  # the first step has not begun
        self._images = 0

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Start anew; the Trainer calls it."""
        super().setup(stage, local_rank, log_dir)
        self._reset()

    def start(self, action_name: str) -> None:
        """Begin a part within the one that runs."""
        part = self._part(action_name)
        if part is None:
            return
        self._charge()
        if action_name.endswith(_FETCH):
            self._end_step()
            if self._since is None:
                self._since, self._images = self._clock(), self._images_seen()
        self._running.append((action_name, part))

    def stop(self, action_name: str) -> None:
        """End a part, and those within it that an error left open."""
        names = [name for name, _ in self._running]
        if action_name not in names:
            return
        self._charge()
        del self._running[len(names) - 1 - names[::-1].index(action_name) :]
        if action_name == _STEP:
            self._pending.number = 1
        elif action_name == _EPOCH:
            self._end_step()

    def _part(self, action: str) -> str | None:
        """Return the part that an action belongs to; None if that of what is around it."""
        if "[" not in action:
            return _PLAIN.get(action, action)
        hook = action.rpartition(".")[2]
        if hook == "on_train_batch_end" and action.startswith("[Callback]"):
            return _RECORD
        if hook == "training_step" and not self._lightning_module.automatic_optimization:
            return None
        return _HOOKS.get(hook)

    def _charge(self) -> None:
        """Give the time since the last change to the part that ran."""
        if self._since is None:
            return
        if self._on_gpu():
            torch.cuda.synchronize()
        now = self._clock()
        part = self._running[-1][1] if self._running else _OTHER
        self._pending.seconds[part] += now - self._since
        self._since = now

    def _end_step(self) -> None:
        if not self._pending.number:
            return  # what lies between epochs goes to the next step
        seen = self._images_seen()
        self._pending.images, self._images = seen - self._images, seen
        early = self._first.number < _WARM_UP
        (self._first if early else self._later).add(self._pending)
        self._pending = _Steps()

    def _images_seen(self) -> int:
        return int(getattr(self._lightning_module, "images_seen", 0))

    def _on_gpu(self) -> bool:
        device = getattr(self._lightning_module, "device", None)
        return device is not None and device.type == "cuda"

    @rank_zero_only
    def describe(self) -> None:
        """Print the table on the first rank; the Trainer calls it at the end."""
        sys.stdout.write(self.summary())
        sys.stdout.flush()

    def summary(self) -> str:
        """Return the table; empty if no step was measured."""
        steps, left_out = self._later, f", the first {_WARM_UP} left out"
        if steps.number < _WARM_UP:
            steps, left_out = _Steps(), ""
            steps.add(self._first)
            steps.add(self._later)
        total = sum(steps.seconds.values())
        if not total:
            return ""
        own = [part for part in steps.seconds if part not in _BEFORE + _AFTER]
        shares = {part: steps.seconds.get(part, 0.0) / total for part in (*_BEFORE, *own, *_AFTER)}
        lines = [f"Where the time of a step goes (mean of {steps.number} steps{left_out}):"]
        for part, share in {**shares, "step": 1.0}.items():
            ms, bar = 1e3 * total * share / steps.number, "#" * round(_BAR * share)
            if share:
                lines.append(f"  {part:14} {ms:10.3f} ms {100 * share:6.1f} %  {bar}".rstrip())
        if steps.images:
            lines.append(f"{steps.images / total:,.0f} images/s")
        return "\n".join([*lines, *self._advice(shares), ""])

    def _advice(self, shares: dict[str, float]) -> list[str]:
        lines = [
            f"{part} takes {100 * shares[part]:.0f} % of the time: {advice}"
            for part, (limit, advice) in _ADVICE.items()
            if shares[part] > limit
        ]
        if self._on_gpu():
            lines.append("Each part waited for the GPU: without the profiler training is faster.")
        return lines
