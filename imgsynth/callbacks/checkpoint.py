"""Checkpoints at update boundaries: exact, whole, and never worse than the one before."""

import errno
import math
import os
import re
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from imgsynth.callbacks.base import method_of, run_folder
from imgsynth.callbacks.cadence import Cadence
from imgsynth.loggers.record import Record
from imgsynth.methods.base import Method
from imgsynth.types import Count

_NAME = re.compile(r"images-(\d+)\.ckpt")


class Checkpoint(LightningCheckpoint):
    """Save ``checkpoints/images-000000012800.ckpt`` in the run's folder, from which it can resume.

    Saves at multiples of ``every``, at the end, and when a run is told to stop (a signal, see
    :class:`GracefulStop`); always between two updates, and only after the method's
    ``check_finite``. A checkpoint gets its name when it is wholly on the disk. Takes the place
    of Lightning's ``ModelCheckpoint``, so leave the Trainer's ``enable_checkpointing`` as it is.

    Args:
        every: Images from one checkpoint to the next; None makes ten in a run.
        keep: How many to keep, the newest; 0 keeps all.
        minutes: Save after so many minutes too.
        monitor: A reported key: the checkpoint with its best value is kept as well. A score,
            such as ``val/fd`` (see :class:`Evaluate`), is that of the very weights: whenever it
            is the best so far, a checkpoint is saved. Another key, such as
            ``train/discriminator/real``, counts as reported last when a checkpoint is saved. A
            logger that takes checkpoints (Weights & Biases, online) gets the best one at the end
            as ``best``, and the last one as ``latest``.
        mode: Whether the lowest value of ``monitor`` is the best, ``min``, or the highest, ``max``.
            None asks who reports it, which knows of its own scores; ``min`` if nobody says.

    Attributes:
        best: The kept checkpoint with the best value; None without ``monitor``, or before any.

    Raises:
        ValueError: If a number is out of range; or, when training starts, if a new run would be
            saved among the checkpoints of another.
        OSError: If a checkpoint cannot be written; the older ones are still there.
        NonFiniteError: If a loss or parameter is not finite; nothing is saved then.

    Example:
        >>> checkpoint = Checkpoint(every="50k", keep=1)
        >>> # Trainer(callbacks=[checkpoint]).fit(method, data)
    """

    def __init__(
        self,
        every: Count | None = None,
        keep: int = 3,
        minutes: float | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
    ) -> None:
        if keep < 0:
            raise ValueError(f"keep must be at least 0 (0 keeps all), got {keep}.")
        if minutes is not None and minutes <= 0:
            raise ValueError(f"minutes must be above 0, or None for never, got {minutes}.")
        if mode not in {"min", "max", None}:
            raise ValueError(f"mode must be min or max, got {mode!r}.")
        self.keep = keep
        self.minutes = minutes
        self.monitor = monitor
        self.mode = mode
        self.best: Path | None = None
        self._least = math.inf  # of the monitored values, or of their opposites
        self._former: set[str] = set()  # the best by something else
        self._protocol = ""  # what the monitored score was measured by
        self._warned = False
        self._cadence = Cadence(every, parts=10)
        self._folder = Path()
        self._stopping = False
        self._saved = 0
        self._saved_at = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the folder: is it this run's?"""
        method = method_of(pl_module)
        self._folder = run_folder(trainer) / "checkpoints"
        self._cadence.start(method)
        self._stopping = False
        self._saved = method.images_seen
        self._saved_at = time.monotonic()
        if self.mode is None:
            reporters = [method, *trainer.callbacks]  # type: ignore[attr-defined]
            rising = {key for r in reporters for key in getattr(r, "rising", ())}
            self.mode = "max" if self.monitor in rising else "min"
        if self.best is not None:
            self.best = self._folder / self.best.name
        newest = newest_checkpoint(self._folder)
        if newest is not None and not method.images_seen:
            raise ValueError(
                f"{self._folder} holds checkpoints of an earlier run, such as {newest.name}; "
                "resume that run (fit with ckpt_path, or `imgsynth resume`), or choose another "
                "folder."
            )
        if trainer.is_global_zero:
            for left_over in self._folder.glob("images-*.ckpt.part"):
                left_over.unlink()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Save if it is due, or if this update is the last."""
        method = method_of(pl_module)
        # Once: a Trainer with min_steps may be told to stop and go on.
        stops = trainer.should_stop and not self._stopping
        self._stopping |= stops
        last = stops or 0 <= trainer.max_steps <= trainer.global_step
        late = self._late(trainer, method)
        if self._cadence.due(method) | late | last | self._is_best(trainer, method):
            self._save(trainer, method)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if the method's own validation, which comes after an update, found the best."""
        method = method_of(pl_module)
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and self._is_best(trainer, method):
            self._save(trainer, method)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the last checkpoint does not hold; hand the best and the last to loggers."""
        method = method_of(pl_module)
        if method.images_seen != self._saved or self._is_best(trainer, method):
            self._save(trainer, method)
        signalled = any(getattr(c, "signal", None) for c in trainer.callbacks)  # type: ignore[attr-defined]
        if trainer.is_global_zero and not signalled:  # then there is no time to upload
            self._hand_over(trainer)

    def _hand_over(self, trainer: Trainer) -> None:
        last = newest_checkpoint(self._folder)
        names = {last: ["latest"]} if last is not None else {}
        if self.best is not None:
            names.setdefault(self.best, []).append("best")
        for logger in trainer.loggers:
            if hasattr(logger, "log_checkpoint"):
                for path, aliases in names.items():
                    logger.log_checkpoint(path, aliases)

    def state_dict(self) -> dict[str, Any]:
        """Return which checkpoint is the best, for the next ones."""
        former: dict[str, Any] = {"former": sorted(self._former)} if self._former else {}
        if self.best is None:
            return former
        value, protocol = self._least, self._protocol
        best = {"monitor": self.monitor, "best": self.best.name, "value": value}
        return best | {"protocol": protocol} | former

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to compare with the best one, if it is there and compared by the same."""
        self._former = set(state_dict.get("former", ()))
        if "best" not in state_dict:
            return
        if state_dict["monitor"] != self.monitor:
            self._former.add(state_dict["best"])
            warnings.warn(
                f"The best checkpoint, {state_dict['best']}, was so by {state_dict['monitor']}; it "
                f"is kept, and the best by {self.monitor} is found anew.",
                stacklevel=2,
            )
        else:
            self._least = state_dict["value"]
            self._protocol = state_dict.get("protocol", "")
            self.best = Path(state_dict["best"])  # its folder is known when training starts

    def _late(self, trainer: Trainer, method: Method) -> bool:
        """Say whether the minutes are over; by the clock of the first rank, for all."""
        if self.minutes is None:
            return False
        late = time.monotonic() - self._saved_at >= 60 * self.minutes
        if trainer.world_size == 1:
            return late
        if method.updates % method.log_every:
            return False
        return bool(trainer.strategy.broadcast(late))

    def _save(self, trainer: Trainer, method: Method) -> None:
        method.check_finite()
        path = self._folder / f"images-{method.images_seen:012d}.ckpt"
        self._compare(trainer, method, path)
        # Beside its final place: the temporary file that Lightning writes may be on another
        # disk, from where moving it is copying, which can break off half-way.
        part = path.with_name(f"{path.name}.part")
        try:
            # False: not the weights only. (Saving; nothing to do with loading weights_only.)
            trainer.save_checkpoint(part, False)
            if trainer.is_global_zero:
                _publish(part, path)
        except OSError as error:
            raise self._failure(path, error) from error
        finally:
            if trainer.is_global_zero and part.is_file():
                part.unlink()
        self._saved = method.images_seen
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:
            self._prune(method.images_seen)

    def _is_best(self, trainer: Trainer, method: Method) -> bool:
        """Say whether these weights have just been scored better than any before."""
        if self.monitor is None:
            return False
        images, protocol = method.scored.get(self.monitor, (-1, ""))
        if images != method.images_seen or self.monitor not in trainer.callback_metrics:
            return False
        self._begin_anew(protocol)
        value = float(trainer.callback_metrics[self.monitor])
        return (value if self.mode == "min" else -value) < self._least

    def _begin_anew(self, protocol: str) -> None:
        """Forget the best if it was measured by something else: the two cannot be compared."""
        if protocol != self._protocol and self.best is not None:
            warnings.warn(
                f"{self.monitor} is measured by another protocol now ({protocol}, before "
                f"{self._protocol}): the best checkpoint is found anew, {self.best}, which was it "
                "before, is kept.",
                stacklevel=2,
            )
            self._former.add(self.best.name)
            self.best, self._least = None, math.inf
        self._protocol = protocol

    def _compare(self, trainer: Trainer, method: Method, path: Path) -> None:
        metrics = trainer.callback_metrics
        if self.monitor is None or not metrics:
            return
        if self.monitor in method.scored:
            images, protocol = method.scored[self.monitor]
            if images != method.images_seen:
                return  # the score is of other weights
            self._begin_anew(protocol)
        if self.monitor not in metrics:
            # what will report it may do so more rarely than checkpoints are saved
            callbacks = trainer.callbacks  # type: ignore[attr-defined]
            promised = self.monitor in getattr(method, "reports", ()) or self.monitor.startswith(
                tuple(key for c in callbacks for key in getattr(c, "reports", ()))
            )
            if not self._warned and not promised:
                warnings.warn(
                    f"monitor={self.monitor!r} is not reported, so no checkpoint is the best yet; "
                    f"reported: {', '.join(metrics)}.",
                    stacklevel=2,
                )
            self._warned = True
            return
        value = float(metrics[self.monitor])
        if (value if self.mode == "min" else -value) < self._least:
            self._least = value if self.mode == "min" else -value
            self.best = path

    def praise(self) -> str:
        """Say which checkpoint is the best, and by how much."""
        value = self._least if self.mode == "min" else -self._least
        return f"Best {self.monitor}: {value:.4g}, in {self.best}"

    def _failure(self, path: Path, error: OSError) -> OSError:
        newest = newest_checkpoint(self._folder)
        advice = (
            f"The last intact checkpoint is {newest}: resume from it when this is repaired."
            if newest is not None
            else "There is no earlier checkpoint."
        )
        failure = OSError(f"Could not save {path}: {error.strerror or error}. {advice}")
        failure.errno = error.errno
        return failure

    def _prune(self, images: int) -> None:
        """Delete what the newest makes superfluous; and what lies beyond, of a run set back."""
        checkpoints = _checkpoints(self._folder)
        numbers = sorted(number for number in checkpoints if number <= images)
        keep = set(numbers[-self.keep :])  # all of them for 0
        for number, path in checkpoints.items():
            if number not in keep and path != self.best and path.name not in self._former:
                path.unlink(missing_ok=True)


def newest_checkpoint(folder: str | Path) -> Path | None:
    """Return the checkpoint with the most images of a run's folder; None if there is none.

    Args:
        folder: The run's folder, or the ``checkpoints`` in it.

    Example:
        >>> # newest_checkpoint("runs/digits")
    """
    inner = Path(folder) / "checkpoints"
    checkpoints = _checkpoints(inner if inner.is_dir() else Path(folder))
    return checkpoints[max(checkpoints)] if checkpoints else None


def best_checkpoint(folder: str | Path) -> Path | None:
    """Return the best checkpoint of a run's folder, as its newest one knows it; None without.

    Args:
        folder: The run's folder.

    Example:
        >>> # best_checkpoint("runs/digits")
    """
    newest = newest_checkpoint(folder)
    if newest is None:
        return None
    states = torch.load(newest, map_location="cpu", weights_only=True, mmap=True)["callbacks"]
    names = [s["best"] for s in states.values() if isinstance(s, dict) and "best" in s]
    best = newest.parent / names[0] if names else None
    return best if best is not None and best.is_file() else None


def how_to_continue(trainer: Trainer) -> str:
    """Return what to type to continue a run that ended early."""
    folder = run_folder(trainer)
    newest = newest_checkpoint(folder)
    if newest is None:
        if any(isinstance(c, Checkpoint) for c in trainer.callbacks):  # type: ignore[attr-defined]
            return "nothing was saved yet: start it again"
        return "nothing was saved, as there is no Checkpoint among the callbacks"
    if any(isinstance(logger, Record) for logger in trainer.loggers):
        return f"continue with: imgsynth resume {folder}"
    return f"continue with: trainer.fit(method, data, ckpt_path={str(newest)!r})"


def _checkpoints(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in matches if match}


def _publish(part: Path, path: Path) -> None:
    """Give a written checkpoint its name, once it is on the disk."""
    if not part.exists():  # Lightning passes over a PermissionError in silence
        raise PermissionError(errno.EACCES, "no permission to write there")
    if part.is_file():
        with part.open("rb") as file:
            os.fsync(file.fileno())
    part.replace(path)
