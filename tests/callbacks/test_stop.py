import os
import signal
import threading

import pytest
import torch
from lightning.pytorch import Callback

from imgsynth.callbacks import Checkpoint, GracefulStop, Length, Samples, newest_checkpoint


class Send(Callback):
    """Sends signals to this process in the middle of an update."""

    def __init__(self, update: int, *numbers: int) -> None:
        self.update = update
        self.numbers = numbers
        self.after: list[int] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if pl_module.updates == self.update:
            for number in self.numbers:
                os.kill(os.getpid(), number)
            self.numbers = ()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after.append(pl_module.updates)


def fit(gan, data, trainer, folder, *callbacks, length=40, **kwargs):
    method = gan()
    run = trainer(folder, *callbacks, Length(length), Checkpoint(100))
    run.fit(method, data(), **kwargs)
    return method


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_update_with_a_checkpoint(
    gan, data, trainer, tmp_path, capsys, number
):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    stop, send = GracefulStop(), Send(2, number)
    method = fit(gan, data, trainer, tmp_path, stop, send)
    assert stop.signal == number
    assert method.updates == 3
    assert newest_checkpoint(tmp_path).name == "images-000000000012.ckpt"
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"Stopped; continue with: imgsynth resume {tmp_path}"
    assert ("Stopping after this update; Ctrl-C once more aborts at once." in lines) == (
        number == signal.SIGINT
    )


@pytest.mark.parametrize("update", [2, 4, 7], ids=["mid-epoch", "epoch's end", "second epoch"])
def test_a_stopped_run_continues_to_the_same_tensors_and_sheets(
    gan, data, trainer, tmp_path, update
):
    whole = fit(gan, data, trainer, tmp_path / "a", Samples(8))
    fit(
        gan, data, trainer, tmp_path / "b", Samples(8), GracefulStop(), Send(update, signal.SIGTERM)
    )
    newest = newest_checkpoint(tmp_path / "b")
    resumed = fit(
        gan, data, trainer, tmp_path / "b", Samples(8), ckpt_path=newest, weights_only=True
    )
    state = resumed.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items())
    for part in ("samples/*.png", "final.png", "training.gif"):
        one, other = (
            {path.name: path.read_bytes() for path in (tmp_path / run).glob(part)} for run in "ab"
        )
        assert one == other


def test_a_second_interrupt_aborts_at_once_and_saves_nothing(gan, data, trainer, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    stop, send = GracefulStop(), Send(2, signal.SIGINT, signal.SIGINT)
    with pytest.raises(SystemExit):  # what Lightning makes of a KeyboardInterrupt
        fit(gan, data, trainer, tmp_path, stop, send)
    assert send.after == [1, 2]
    assert stop.signal == signal.SIGINT
    assert newest_checkpoint(tmp_path) is None
    assert signal.getsignal(signal.SIGINT) == before


def test_repeated_sigterm_is_one_request(gan, data, trainer, tmp_path):
    stop = GracefulStop()
    method = fit(gan, data, trainer, tmp_path, stop, Send(2, signal.SIGTERM, signal.SIGTERM))
    assert (stop.signal, method.updates) == (signal.SIGTERM, 3)


def test_a_signal_in_the_last_update_leaves_nothing_to_continue(
    gan, data, trainer, tmp_path, capsys
):
    stop = GracefulStop()
    fit(gan, data, trainer, tmp_path, stop, Send(1, signal.SIGTERM), length=8)
    assert stop.signal == signal.SIGTERM
    assert "continue" not in capsys.readouterr().err


def test_the_next_fit_starts_unstopped(gan, data, trainer, tmp_path):
    stop = GracefulStop()
    fit(gan, data, trainer, tmp_path, stop, Send(2, signal.SIGTERM))
    newest = newest_checkpoint(tmp_path)
    method = fit(gan, data, trainer, tmp_path, stop, ckpt_path=newest, weights_only=True)
    assert stop.signal is None
    assert method.updates == 10


def test_without_a_checkpoint_callback_it_says_that_nothing_was_saved(
    gan, data, trainer, tmp_path, capsys
):
    run = trainer(
        None,
        GracefulStop(),
        Send(2, signal.SIGTERM),
        Length(40),
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    run.fit(gan(), data())
    assert "Stopped; nothing was saved" in capsys.readouterr().err


def test_without_a_record_it_says_how_to_go_on_in_python(gan, data, trainer, tmp_path, capsys):
    run = trainer(
        None,
        GracefulStop(),
        Send(2, signal.SIGTERM),
        Checkpoint(),
        Length(40),
        default_root_dir=tmp_path,
    )
    run.fit(gan(), data())
    newest = newest_checkpoint(tmp_path)
    line = f"Stopped; continue with: trainer.fit(method, data, ckpt_path='{newest}')"
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_in_another_thread_no_handler_is_touched(gan, data, trainer, tmp_path):
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, *args):
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    args = (gan, data, trainer, tmp_path, GracefulStop(), Look())
    thread = threading.Thread(target=fit, args=args)
    thread.start()
    thread.join()
    assert seen == [before] * 10


def test_an_error_puts_the_handlers_back(gan, data, trainer, tmp_path):
    class Fail(Callback):
        def on_train_batch_start(self, *args):
            raise RuntimeError("broken")

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError, match="broken"):
        fit(gan, data, trainer, tmp_path, GracefulStop(), Fail())
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_in_the_last_update_leaves_the_last_sheet_drawn(gan, data, trainer, tmp_path):
    samples = Samples(every=1000, gif=False)
    fit(gan, data, trainer, tmp_path, GracefulStop(), Send(1, signal.SIGTERM), samples, length=8)
    assert (tmp_path / "samples" / "000000000008.png").exists()


def test_a_signal_while_the_run_ends_is_not_left_to_lightning(gan, data, trainer, tmp_path):
    """Its handler waits for the other devices, which may wait for this one."""

    class Late(Callback):
        def on_train_end(self, trainer, pl_module):
            os.kill(os.getpid(), signal.SIGTERM)

    stop = GracefulStop()
    run = trainer(tmp_path, stop, Late(), Length(8))
    run.fit(gan(), data())
    assert not run._signal_connector.received_sigterm
    assert stop.signal is None  # it came too late to stop anything
