import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks import context

from imgsynth.callbacks import Watchdog
from imgsynth.callbacks.watchdog import _LOST, leave_with_parent


@pytest.mark.parametrize("timeout", [0, -1])
def test_the_timeout_must_be_positive(timeout):
    with pytest.raises(ValueError, match=f"timeout must be above 0 seconds, got {timeout}"):
        Watchdog(timeout=timeout)


def test_on_one_device_nothing_is_watched(gan, data, trainer):
    before = threading.active_count()
    watchdog = Watchdog()
    trainer(None, watchdog, max_steps=2).fit(gan(), data())
    assert threading.active_count() == before
    assert watchdog.verdict is None


def test_an_error_on_one_device_is_its_own(gan, data, trainer):
    watchdog, method = Watchdog(), gan()

    def broken(batch, fakes):
        raise RuntimeError("Connection closed by peer")

    method.generator_loss = broken
    with pytest.raises(RuntimeError, match="closed by peer"):
        trainer(None, watchdog, max_steps=2).fit(method, data())
    assert watchdog.verdict is None


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:6543", True),
        ("NCCL communicator was aborted on rank 1.", True),
        ("Timed out waiting 60000ms for recv operation to complete", True),
        ("mat1 and mat2 shapes cannot be multiplied (16x64 and 32x16)", False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", False),
    ],
)
def test_errors_of_a_lost_connection_are_told_from_others(text, lost):
    assert bool(_LOST.search(text)) is lost


def test_what_torch_raises_when_a_process_is_gone_is_such_an_error():
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = torch.distributed.TCPStore("127.0.0.1", store.port, is_master=False)
    del store
    with pytest.raises((torch.distributed.DistError, RuntimeError)) as caught:
        [client.get("key") for _ in range(100) if client.set("key", "value") is None]
    assert isinstance(caught.value, torch.distributed.DistError) or _LOST.search(str(caught.value))


class Store:
    """What the watchdog needs of a store."""

    def __init__(self):
        self.values = {}

    def check(self, keys):
        return all(key in self.values for key in keys)

    def get(self, key):
        return self.values[key]


def test_a_process_is_lost_after_so_many_looks_whatever_the_clock_says(monkeypatch):
    watchdog = Watchdog(timeout=3)
    watchdog._store, watchdog._key, watchdog._beats = Store(), "run", {}
    watchdog._rank, watchdog._ranks = 0, 3
    watchdog._store.values = {"run/beat/1": b"1", "run/beat/2": b"1"}
    for look in range(3):
        watchdog._store.values["run/beat/2"] = str(look).encode()
        assert watchdog._silent() == ""
        monkeypatch.setattr("time.monotonic", lambda: 1e9)  # suspended for years
    watchdog._store.values["run/beat/2"] = b"alive"
    assert watchdog._silent() == ""
    watchdog._store.values["run/beat/2"] = b"still alive"
    assert watchdog._silent() == "process 1 of 3 gave no sign of life for 3 s"


def _orphan(path):
    if os.fork():
        while not path.exists():
            time.sleep(0.01)
        os._exit(0)
    leave_with_parent(patience=0.1)
    path.write_text(str(os.getpid()))
    time.sleep(60)
    os._exit(0)


def test_a_helper_leaves_when_its_parent_is_gone(tmp_path):
    process = context.Process(target=_orphan, args=(tmp_path / "pid",))
    process.start()
    process.join(30)
    status = Path("/proc", (tmp_path / "pid").read_text(), "status")

    def lives():  # ended, it may wait for somebody to collect it
        return status.exists() and "State:\tZ" not in status.read_text()

    deadline = time.monotonic() + 20
    while lives() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives()


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_only_training_is_watched(monkeypatch, stage):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    watchdog = Watchdog()
    watchdog.setup(SimpleNamespace(world_size=2), None, stage)
    assert watchdog._thread is None
