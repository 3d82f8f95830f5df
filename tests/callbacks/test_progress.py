import io
import re
import sys

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import TQDMProgressBar

from imgsynth.callbacks import Checkpoint, Length, Progress, newest_checkpoint


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fit(gan, data, trainer, progress, length, **kwargs):
    method = gan()
    run = trainer(None, progress, Length(length), enable_progress_bar=True, **kwargs)
    run.fit(method, data())
    return run, method


def test_a_file_gets_a_plain_line_each_tenth(gan, data, trainer, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    _, method = fit(gan, data, trainer, Progress(), 80, enable_checkpointing=False)
    lines = [line for line in stream.getvalue().splitlines() if "images/s" in line]
    assert "\r" not in stream.getvalue()
    shown = [re.match(r" *(\d+)% (\d+)/80 images, ([\d,]+) images/s, (\S+) left", x) for x in lines]
    assert [(int(m[1]), int(m[2])) for m in shown] == [(n * 10, n * 8) for n in range(1, 11)]
    assert shown[-1][4] == "00:00"
    real = method.latest["train/discriminator/real"]
    fake = method.latest["train/discriminator/fake"]
    adversarial = method.latest["train/generator/adversarial"]
    losses = f"D real {real:.3g}, D fake {fake:.3g}, G adversarial {adversarial:.3g}"
    assert lines[-1].endswith(f", {losses}")


def test_a_long_tenth_gets_a_line_each_thirty_seconds(gan, data, trainer, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr("imgsynth.callbacks.progress._SECONDS_PER_LINE", 0.0)
    fit(gan, data, trainer, Progress(), 120, enable_checkpointing=False)
    assert stream.getvalue().count("/120 images") == 30


def test_a_terminal_gets_one_bar_over_images(gan, data, trainer, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("imgsynth.callbacks.progress._SECONDS_PER_REFRESH", 0.0)
    run, method = fit(gan, data, trainer, Progress(), 40, enable_checkpointing=False)
    last = stream.getvalue().split("\r")[-1]
    assert last.startswith("100%|")
    assert "40.0/40.0 images [" in last
    assert "images/s, D real " in last
    assert f"G adversarial {method.latest['train/generator/adversarial']:.3g}]" in last
    assert not any(isinstance(callback, TQDMProgressBar) for callback in run.callbacks)


def test_refreshes_twice_a_second_at_most(gan, data, trainer, monkeypatch):
    refreshed = []
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(Progress, "_refresh", lambda self, method: refreshed.append(method.updates))
    monkeypatch.setattr("imgsynth.callbacks.progress._SECONDS_PER_REFRESH", 1e9)
    fit(gan, data, trainer, Progress(), 40, enable_checkpointing=False)
    assert refreshed == [10]  # at the end


def test_a_resumed_run_begins_where_it_was(gan, data, trainer, tmp_path, monkeypatch):
    trainer(tmp_path, Length(20), Checkpoint()).fit(gan(), data())
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    run = trainer(tmp_path, Progress(), Checkpoint(), Length(40), enable_progress_bar=True)
    run.fit(gan(), data(), ckpt_path=newest_checkpoint(tmp_path), weights_only=True)
    counts = re.findall(r"([\d.]+)/([\d.?]+) images", stream.getvalue())
    assert counts[0][0] == "20.0"
    assert counts[-1] == ("40.0", "40.0")


def test_a_run_without_a_length_shows_what_it_knows(gan, data, trainer, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr("imgsynth.callbacks.progress._SECONDS_PER_LINE", 0.0)

    class End(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = True

    run = trainer(None, End(), Progress(), enable_progress_bar=True, enable_checkpointing=False)
    run.fit(gan(), data())
    assert re.search(r"^4 images, [\d,]+ images/s$", stream.getvalue(), re.M)


def test_other_ranks_show_nothing(gan, data, trainer, monkeypatch):
    stream = Terminal()
    progress = Progress()
    progress.disable()
    monkeypatch.setattr(sys, "stderr", stream)
    fit(gan, data, trainer, progress, 8, enable_checkpointing=False)
    assert "images" not in stream.getvalue()


@pytest.mark.parametrize("enabled", [True, False])
def test_print_writes_a_line_where_the_bar_is_shown(capsys, enabled):
    progress = Progress()
    if not enabled:
        progress.disable()
    progress.print("one", 2, sep="-")
    assert capsys.readouterr().err.strip() == ("one-2" if enabled else "")
