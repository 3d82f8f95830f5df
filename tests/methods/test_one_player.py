"""One loss, one optimiser: the sum of terms, the schedule, the errors."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from imgsynth.methods import OnePlayerMethod
from imgsynth.optim import SGD, LinearDecay


class TwoTerms(OnePlayerMethod):
    """A line through the images' means, and a pull to zero."""

    averaged = ("network",)

    def __init__(self, network: nn.Module, **kwargs):
        super().__init__(**{"optimizer": SGD(lr=0.1), **kwargs})
        self.network = network

    def losses(self, batch):
        made = self.network(batch["image"].flatten(1))
        self.meter.add("train", {"size": made.abs().mean()})
        return {"squares": (made - 1).square().mean(), "pull": 0.01 * made.square().mean()}


def batches(num=4):
    generator = torch.Generator().manual_seed(0)
    return [{"image": torch.randn(3, 1, 2, 2, generator=generator)} for _ in range(num)]


def fit(method, given):
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=len(given),
    )  # fmt: skip
    trainer.fit(method, DataLoader(given, batch_size=None))
    return method


def test_training_minimises_the_sum_of_the_terms_at_the_rate_of_the_schedule():
    torch.manual_seed(1)
    method = TwoTerms(nn.Linear(4, 1), schedule=LinearDecay(warmup=6))
    torch.manual_seed(1)
    network = nn.Linear(4, 1)
    fit(method, batches())
    squares = []
    for number, batch in enumerate(batches()):
        made = network(batch["image"].flatten(1))
        squares.append((made - 1).square().mean())
        network.zero_grad()
        (squares[-1] + 0.01 * made.square().mean()).backward()
        seen = 3 * number
        rate = 0.1 * min(1, seen / 6) * (1 - seen / 12)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= rate * parameter.grad
    for ours, theirs in zip(method.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert set(method.latest) >= {"train/squares", "train/pull", "train/size"}
    assert method.latest["train/squares"] == pytest.approx(torch.stack(squares).mean().item())


def test_averages_and_frozen_parameters_are_not_trained():
    method = TwoTerms(nn.Linear(4, 1))
    method.network.bias.requires_grad_(False)
    method.configure_model()
    (group,) = method.configure_optimizers().param_groups
    assert [id(p) for p in group["params"]] == [id(method.network.weight)]


def test_a_method_without_losses_or_parameters_says_so():
    class Empty(OnePlayerMethod):
        pass

    with pytest.raises(TypeError, match=r"Empty must define losses\(batch\)"):
        Empty().losses({})
    with pytest.raises(ValueError, match="Empty has no parameter that requires a gradient"):
        Empty().configure_optimizers()
