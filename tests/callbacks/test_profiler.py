from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from imgsynth.callbacks import StepProfiler
from imgsynth.methods import Method

FETCH = "[_TrainingEpochLoop].train_dataloader_next"
STEP = "run_training_batch"


class Clock:
    """Shows a time that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Run:
    """A profiler under a clock of our own; images, device and optimisation are what we say."""

    def __init__(self, stage: str = "fit", **module) -> None:
        self.clock = Clock()
        self.profiler = StepProfiler(self.clock)
        module = {"images_seen": 0, "automatic_optimization": False, **module}
        self.module = self.profiler._lightning_module = SimpleNamespace(**module)
        self.profiler.setup(stage)

    def spend(self, seconds: float, *actions: str) -> None:
        """Spend some time within actions, outer ones first."""
        with ExitStack() as stack:
            for action in actions:
                stack.enter_context(self.profiler.profile(action))
            self.clock.now += seconds

    def step(self, *spent: tuple[float, tuple[str, ...]], images: int = 4) -> None:
        """One step: data for a second, then what is given."""
        self.spend(1.0, FETCH)
        with self.profiler.profile(STEP):
            for seconds, actions in spent:
                self.spend(seconds, *actions)
            self.module.images_seen += images

    def rows(self) -> dict[str, tuple[float, float]]:
        """Milliseconds and share of each part, as printed."""
        lines = [line.split() for line in self.profiler.summary().splitlines() if " ms " in line]
        cut = [(line, line.index("ms")) for line in lines]
        return {" ".join(x[: i - 1]): (float(x[i - 1]), float(x[i + 1])) for x, i in cut}


def end(run: Run) -> None:
    """The loop asks for another batch, and there is none."""
    with run.profiler.profile("run_training_epoch"):
        run.spend(0.0, FETCH)


def test_a_part_within_another_counts_for_itself_only():
    run = Run()
    run.step(
        (2.0, ("generator",)),
        (3.0, ("generator", "fakes")),
        (5.0, ("optimiser", "optimizer_step", "[LightningModule]GAN.on_before_optimizer_step")),
        (8.0, ("[Strategy]SingleDeviceStrategy.training_step",)),
    )
    end(run)
    assert run.rows() == {
        "data": (1000.0, 5.3),
        "fakes": (3000.0, 15.8),
        "generator": (2000.0, 10.5),
        "optimiser": (5000.0, 26.3),
        "other": (8000.0, 42.1),
        "step": (19000.0, 100.0),
    }


def test_what_callbacks_and_checkpoints_do_is_record():
    run = Run()
    run.step((1.0, ("record",)))
    run.spend(2.0, "[Callback]Samples.on_train_batch_end")
    run.spend(4.0, "[Callback]Checkpoint.on_train_batch_end", "save_checkpoint")
    run.spend(8.0, "[Callback]Length.on_train_batch_start")
    end(run)
    assert run.rows()["record"][0] == 7000.0
    assert run.rows()["other"][0] == 8000.0


def test_moving_a_batch_to_the_device_is_data():
    run = Run()
    run.step()
    run.spend(1.0, "[Strategy]SingleDeviceStrategy.batch_to_device")
    run.spend(2.0, "[LightningDataModule]Digits.on_after_batch_transfer")
    end(run)
    assert run.rows()["data"][0] == 4000.0


def test_parts_that_a_method_adds_come_between_the_known_ones():
    run = Run()
    run.step((1.0, ("encoder",)), (1.0, ("optimiser",)), (1.0, ("generator",)))
    end(run)
    assert list(run.rows()) == ["data", "generator", "encoder", "optimiser", "step"]


@pytest.mark.parametrize(("steps", "mean", "said"), [
    (10, 2.0, "mean of 5 steps, the first 5 left out"),  # the sixth is the first of two seconds
    (9, (5 * 11 + 4 * 2) / 9, "mean of 9 steps)"),
    (1, 11.0, "mean of 1 steps)"),
])  # fmt: skip
def test_the_first_steps_are_left_out_if_as_many_follow(steps, mean, said):
    run = Run()
    for number in range(steps):
        run.step((10.0 if number < 5 else 1.0, ("generator",)))
    end(run)
    assert run.rows()["step"][0] == pytest.approx(1e3 * mean, abs=0.001)
    assert said in run.profiler.summary()


def test_images_a_second_are_those_of_the_measured_steps():
    run = Run()
    for number in range(10):
        run.step((1.0, ("generator",)), images=7 if number < 5 else 4)
    end(run)
    assert "\n2 images/s\n" in run.profiler.summary()  # 4 in 2 seconds


def test_what_lies_before_the_first_step_and_after_the_last_is_left_out():
    run = Run()
    run.spend(50.0, "[Callback]Samples.on_train_start")
    with run.profiler.profile("run_training_epoch"):
        run.step((1.0, ("generator",)))
    run.spend(70.0, "[Callback]Samples.on_train_end")
    assert run.rows()["step"][0] == 2000.0


def test_what_lies_between_two_epochs_belongs_to_the_next_step():
    run = Run()
    with run.profiler.profile("run_training_epoch"):
        run.step((1.0, ("generator",)))
    run.spend(4.0, "[LightningModule]GAN.on_train_epoch_end")
    with run.profiler.profile("run_training_epoch"):
        run.step((1.0, ("generator",)))
    assert run.rows()["other"][0] == 2000.0
    assert "mean of 2 steps" in run.profiler.summary()


def test_an_action_that_an_error_left_open_ends_with_the_one_around_it():
    run = Run()
    run.spend(1.0, FETCH)
    with run.profiler.profile(STEP):
        with run.profiler.profile("optimiser"):
            run.profiler.start("optimizer_step")  # Lightning would not stop it
            run.clock.now += 1.0
        run.spend(2.0)
    end(run)
    assert run.rows() == {
        "data": (1000.0, 25.0), "optimiser": (1000.0, 25.0), "other": (2000.0, 50.0),
        "step": (4000.0, 100.0),
    }  # fmt: skip


@pytest.mark.parametrize(("part", "seconds", "advised"), [
    (FETCH, 2.0, "data takes 75 % of the time: more num_workers"),
    ("record", 3.0, "record takes 75 % of the time: larger log_every_n_steps"),
    ("generator", 3.0, ""),
])  # fmt: skip
def test_advice_is_given_only_when_something_is_off(part, seconds, advised):
    run = Run()
    run.step(*([] if part == FETCH else [(seconds, (part,))]))
    run.spend(seconds, "[Strategy]S.batch_to_device") if part == FETCH else None
    run.spend(1.0 if part == FETCH else 0.0)
    end(run)
    text = run.profiler.summary()
    assert ("takes" in text) == bool(advised)
    assert advised in text


@pytest.mark.parametrize(("device", "waits"), [("cpu", 0), ("cuda", 6)])
def test_only_a_gpu_is_waited_for(monkeypatch, device, waits):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    run = Run(device=torch.device(device))
    run.step((1.0, ("generator",)))
    run.profiler.start(FETCH)
    # data ends, the step begins, the generator begins and ends, the step ends, data begins
    assert len(waited) == waits
    assert ("waited for the GPU" in run.profiler.summary()) == (device == "cuda")


def test_a_second_fit_starts_anew():
    run = Run()
    run.step((1.0, ("generator",)))
    end(run)
    run.profiler.setup("validate")
    assert run.profiler.summary() == ""


def test_only_the_first_rank_prints(capsys, monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    run = Run()
    run.step((1.0, ("generator",)))
    end(run)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    run.profiler.describe()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    run.profiler.describe()
    assert capsys.readouterr().out == run.profiler.summary() != ""


# -- real runs --------------------------------------------------------------------------------


def test_images_of_a_real_run_are_all_measured(gan, data, trainer, capsys):
    clock = Clock()

    class Tick(Callback):
        def on_train_batch_end(self, *args):
            clock.now += 2.0

    profiler = StepProfiler(clock)
    fit = trainer(None, Tick(), max_epochs=3, profiler=profiler, enable_checkpointing=False)
    fit.fit(gan(), data())
    assert capsys.readouterr().out.splitlines() == [
        "Where the time of a step goes (mean of 10 steps, the first 5 left out):",
        "  record           2000.000 ms  100.0 %  " + "#" * 30,
        "  step             2000.000 ms  100.0 %  " + "#" * 30,
        "2 images/s",
        "record takes 100 % of the time: larger log_every_n_steps, samples.every and "
        "checkpoint.every record more seldom. (In a short run sheets and checkpoints come closer "
        "together.)",
    ]


def test_where_lightning_optimises_its_passes_are_the_training_step(data, trainer, capsys):
    clock = Clock()

    class Fitted(Method):
        averaged = ("network",)

        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Linear(64, 1)

        def training_step(self, batch, batch_idx):
            clock.now += 3.0
            return self.network(batch["image"].flatten(1)).square().mean()

        def on_after_backward(self):
            clock.now += 4.0

        def on_before_optimizer_step(self, optimizer):
            clock.now += 1.0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    fit = trainer(None, max_steps=12, profiler=StepProfiler(clock), enable_checkpointing=False)
    fit.fit(Fitted(), data())
    out = capsys.readouterr().out
    assert "  training step    7000.000 ms   87.5 %  " in out
    assert "  optimiser        1000.000 ms   12.5 %  " in out
    assert "  step             8000.000 ms  100.0 %  " in out
