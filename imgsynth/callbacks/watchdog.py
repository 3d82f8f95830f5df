"""When a run fails on one device, it ends on all of them, with one message."""

import contextlib
import os
import re
import signal
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from imgsynth.callbacks.checkpoint import how_to_continue

_PERIOD = 1.0
_PATIENCE = 5.0
_EXIT_CODE = 2
_LOST = re.compile(
    r"gloo|nccl|tcpstore|connection (closed|reset|refused)|broken pipe|socket|timed out",
    re.IGNORECASE,
)


class Watchdog(Callback):
    """End the run on all devices when it fails on one, instead of waiting for ever.

    A thread of each process gives a sign of life each second and looks for those of others. If
    one process fails (a full disk, memory, bad data), is killed or does not answer, the others
    end within :attr:`timeout` and a few seconds; one of them says what happened and how to
    continue from the last checkpoint. On one device it does nothing.

    Put it first among the callbacks. It takes the place of Lightning's own observer, which kills
    all processes without saying why.

    Args:
        timeout: Seconds without a sign of life after which a process counts as lost. A killed
            process is noticed at once; this is for one that hangs, or a machine that went away.

    Attributes:
        verdict: What :meth:`on_exception` found out: None if this process failed by itself and
            is the one to say so, a text if another one is to blame and this one says so, empty if
            another one says it.

    Raises:
        ValueError: If ``timeout`` is no positive number.

    Example:
        >>> watchdog = Watchdog(timeout=60)
        >>> # Trainer(devices=2, callbacks=[watchdog, Checkpoint()]).fit(method, data)
    """

    def __init__(self, timeout: float = 30.0) -> None:
        if timeout <= 0:
            raise ValueError(f"timeout must be above 0 seconds, got {timeout}.")
        self.timeout = timeout
        self.verdict: str | None = None
        self._thread: threading.Thread | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch, as soon as the processes know each other."""
        address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        if stage != "fit" or trainer.world_size == 1 or self._thread or not (address and port):
            return
        self.verdict = None
        self._trainer = trainer
        self._rank, self._ranks = trainer.global_rank, trainer.world_size
        self._children: list[Any] = []
        self._store = TCPStore(  # a connection of its own: the other one may wait
            address,
            int(port),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=self.timeout),
        )
        self._key = f"imgsynth/{trainer.strategy.broadcast(time.time_ns())}"
        self._heard = ""
        self._beats: dict[int, tuple[bytes, int]] = {}
        self._take_over_from_lightning()
        self._done = threading.Event()  # not in the constructor: ddp_spawn pickles
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def _take_over_from_lightning(self) -> None:
        self._children = getattr(self._trainer.strategy.launcher, "procs", [])
        for thread in threading.enumerate():
            if thread.name == "child-process-observer":
                thread._child_processes = []  # type: ignore[attr-defined]

    # -- the thread ---------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._done.wait(_PERIOD):
            try:
                failure, speaks = self._look()
            except (RuntimeError, distributed.DistError):
                failure, speaks = "the first process is gone", True
            if failure and not self._done.wait(_PATIENCE):  # the main thread may end by itself
                if speaks:
                    _say(self._message(failure))
                os._exit(_EXIT_CODE)  # the main thread waits for somebody who never comes

    def _look(self) -> tuple[str, bool]:
        """Give and look for signs of life; return what is wrong, and whether to tell."""
        self._store.set(f"{self._key}/beat/{self._rank}", str(time.monotonic_ns()))
        told = self._told()
        if told.startswith(f"{self._rank}: "):  # by this process itself
            return "", False
        if told:
            if not self._heard:
                self._store.add(f"{self._key}/hearers", 1)
            self._heard = told
            return told, False
        lost = self._lost_child() or self._silent()
        return lost, bool(lost) and self._tell(lost)

    def _told(self) -> str:
        key = f"{self._key}/failure"
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _tell(self, failure: str) -> bool:
        """Tell the others; return whether this process was the first to."""
        mine = f"{self._rank}: "
        told = self._store.compare_set(f"{self._key}/failure", "", mine + failure).decode()
        return bool(told.startswith(mine))

    def _lost_child(self) -> str:
        for rank, child in enumerate(self._children, start=self._rank + 1):
            code = child.poll()
            if code:
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                return f"process {rank} of {self._ranks} ended ({how})"
        return ""

    def _silent(self) -> str:
        """Name a process that has not changed its sign of life for too long."""
        for rank in range(1, self._ranks) if self._rank == 0 else [0]:
            key = f"{self._key}/beat/{rank}"
            beat = self._store.get(key) if self._store.check([key]) else b""
            last, looks = self._beats.get(rank, (b"", 0))
            looks = looks + 1 if beat == last else 0
            self._beats[rank] = (beat, looks)
            if looks * _PERIOD > self.timeout:  # by looks: this process may have been suspended too
                who = f"process {rank} of {self._ranks}"
                return f"{who} gave no sign of life for {self.timeout:g} s"
        return ""

    def _message(self, failure: str) -> str:
        advice = how_to_continue(self._trainer)
        return f"The run ended, because {failure}.\n{advice[:1].upper()}{advice[1:]}"

    # -- the main thread ----------------------------------------------------------------------

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Find out who failed, tell the others, and wait until they know."""
        if self._thread is None:
            return
        if self._heard:
            self.verdict = ""
            self._end()
            return
        consequence = isinstance(exception, distributed.DistError) or (
            isinstance(exception, RuntimeError)
            and _LOST.search(str(exception)) is not None
            and "DataLoader" not in str(exception)  # its workers time out too
        )
        failure = self._lost_soon() if consequence else f"{type(exception).__name__}: {exception}"
        first = True
        with contextlib.suppress(RuntimeError, distributed.DistError):  # nobody left to talk to
            first = self._tell(failure)
            if first:
                self._wait_until_heard()
        if not first:
            self.verdict = ""
        elif consequence:
            self.verdict = self._message(failure)
        self._end()

    def _lost_soon(self) -> str:
        """Name the process whose loss broke a connection; it may not have ended yet."""
        deadline = time.monotonic() + _PATIENCE / 2
        while self._children and time.monotonic() < deadline:
            lost = self._lost_child()
            if lost:
                return lost
            time.sleep(0.05)
        return "another process was lost"

    def _wait_until_heard(self) -> None:
        deadline = time.monotonic() + _PATIENCE / 2
        while time.monotonic() < deadline:
            if self._store.add(f"{self._key}/hearers", 0) >= self._ranks - 1:
                return
            time.sleep(0.05)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the others: whoever goes first takes the connections along."""
        if self._thread is not None:
            trainer.strategy.barrier()
            self._end()

    def _end(self) -> None:
        if self._thread is not None:
            self._done.set()
            self._thread.join()
        self._thread = None


def leave_with_parent(patience: float = 20.0) -> None:
    """End this process some seconds after the one that started it, if nothing else does.

    For processes that Lightning starts: when the first one dies before they know each other, they
    would wait for it for half an hour.

    Args:
        patience: Seconds from the parent's end to this one's.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PERIOD)
        time.sleep(patience)
        os._exit(_EXIT_CODE)

    threading.Thread(target=watch, name="orphan", daemon=True).start()


def _say(text: str) -> None:
    sys.stderr.write(f"imgsynth: {text}\n")
    sys.stderr.flush()
