"""The real command line in processes that can be killed, without each importing Lightning anew.

A fork server has everything imported; each command runs in a fork of it, with its own process
group, folder and output file.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "lightning.pytorch", "imgsynth.cli", "imgsynth.testing"])


def _main(arguments: list[str], folder: str, output: str, environment: dict[str, str]) -> None:
    os.setpgid(0, 0)
    os.chdir(folder)
    os.environ.update(environment)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    from imgsynth.cli import main

    torch.set_num_threads(1)
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def free_port() -> int:
    """Return a port of this machine that nobody listens to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def ranks(folder: Path, *arguments: object, number: int = 2) -> list["Command"]:
    """Start one command in several processes that train together, as torchrun would."""
    port = str(free_port())
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(number)}
    devices = ("--trainer.devices", number)
    return [
        Command(folder, *arguments, *devices, LOCAL_RANK=str(rank), NODE_RANK="0", **group)
        for rank in range(number)
    ]


class Command:
    """``imgsynth ARGUMENTS`` in a process of its own.

    Use it in a ``with``: at its end the process is gone, whatever happened.
    """

    def __init__(self, folder: Path, *arguments: object, **environment: str) -> None:
        self.output = folder / f"output-{time.monotonic_ns()}.txt"
        words = [str(a) for a in arguments]
        self.process: ForkServerProcess = _context.Process(
            target=_main, args=(words, str(folder), str(self.output), environment)
        )
        self.process.start()

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill(signal.SIGKILL)
        self.process.join()

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the process and its workers, if it still runs."""
        if self.process.is_alive():
            os.killpg(self.process.pid, number)

    def wait(self, seconds: float = 120) -> int:
        """Return the exit code (minus the signal's number after a kill)."""
        self.process.join(seconds)
        code = self.process.exitcode
        assert code is not None, f"still running after {seconds} s:\n{self.text()}"
        return code

    def text(self) -> str:
        """Return what the command printed so far."""
        return self.output.read_text() if self.output.exists() else ""


def imgsynth(folder: Path, *arguments: object) -> str:
    """Run a command to its end and return what it printed; it must succeed."""
    with Command(folder, *arguments) as command:
        code = command.wait()
        assert code == 0, f"exit code {code}:\n{command.text()}"
        return command.text()
