"""Ctrl-C and SIGTERM end a run at an update boundary, so that it can continue exactly."""

import contextlib
import signal as signals
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from imgsynth.callbacks.base import method_of
from imgsynth.callbacks.checkpoint import how_to_continue

_SIGNALS = (signals.SIGINT, signals.SIGTERM)
_MOST_UPDATES = 10


class GracefulStop(Callback):
    """Stop after the present update on the first Ctrl-C or SIGTERM; a further Ctrl-C aborts.

    :class:`Checkpoint` saves at that boundary, and ``fit`` returns as usual. On several devices
    the ranks agree every 10 updates, or more often if they report more often. Handlers are in
    place while training runs, and only in the main thread.

    Attributes:
        signal: The signal that stopped the run; None if none did. A command line exits with
            128 + signal.

    Example:
        >>> stop = GracefulStop()
        >>> # Trainer(callbacks=[stop, Checkpoint()]).fit(method, data)
        >>> stop.signal
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._received = 0  # by this process; what all agree on is the signal
        self._speaks = True
        self._before: dict[int, Callable[..., Any] | int | None] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put our handlers in the place of Python's and Lightning's."""
        self.signal = None
        self._received = 0
        self._speaks = trainer.is_global_zero
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signals.getsignal(number) for number in _SIGNALS}
            for number in _SIGNALS:
                signals.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._received:
            self._received = number
            if number == signals.SIGINT and self._speaks:
                _say("\nStopping after this update; Ctrl-C once more aborts at once.")
        elif number == signals.SIGINT:
            raise KeyboardInterrupt

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Stop if a signal came, to this rank or another."""
        method = method_of(pl_module)
        received = self._received
        if trainer.world_size > 1:
            if method.updates % min(method.log_every, _MOST_UPDATES):
                return
            flag = torch.tensor(received, device=method.device)
            received = int(trainer.strategy.reduce(flag, reduce_op="max"))
        if received:
            self.signal = received
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how to go on."""
        if self.signal is not None and trainer.is_global_zero and not _reached_end(trainer):
            _say(f"Stopped; {how_to_continue(trainer)}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the handlers back; not before, as Lightning's own waits for all other devices."""
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put the handlers back."""
        if isinstance(exception, KeyboardInterrupt):
            self.signal = signals.SIGINT
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            if signals.getsignal(number) == self._receive:
                signals.signal(number, handler if handler is not None else signals.SIG_DFL)
        self._before = {}


def stopped(trainer: Trainer) -> bool:
    """Say whether a signal is what ends the run, before its time."""
    stops = (c for c in trainer.callbacks if isinstance(c, GracefulStop))  # type: ignore[attr-defined]
    return any(stop.signal is not None for stop in stops) and not _reached_end(trainer)


def _reached_end(trainer: Trainer) -> bool:
    return 0 <= trainer.max_steps <= trainer.global_step


def _say(line: str) -> None:
    # A handler may interrupt a write to the same stream, which then refuses this one.
    with contextlib.suppress(RuntimeError, OSError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
