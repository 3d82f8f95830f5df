"""Methods with one player and Lightning's automatic optimisation have the same hook."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from imgsynth.ema import averaging_weight
from imgsynth.methods import Method
from imgsynth.seeding import seed_default_generators
from imgsynth.testing import check_method

SEED = 5


class Autoencoder(Method):
    """Reconstructs noisy images; the noise is drawn in the step."""

    averaged = ("network",)

    def __init__(self, network: nn.Module, **kwargs):
        super().__init__(**kwargs)
        self.network = network

    def training_step(self, batch, batch_idx):
        images = batch["image"].flatten(1)
        noisy = images + 0.1 * torch.randn_like(images)
        terms = {"squares": (self.network(noisy) - images).square().mean()}
        self.meter.add("train", terms)
        return sum(terms.values())

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=0.1)


def _fit(batches, **kwargs):
    torch.manual_seed(1)
    method = Autoencoder(nn.Linear(4, 4), ema_half_life=10, ema_ramp_up=None)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    trainer.fit(method, DataLoader(batches, batch_size=None))
    return method, trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_automatic_method_equals_a_loop_by_hand(accumulate, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", str(SEED))
    generator = torch.Generator().manual_seed(2)
    batches = [{"image": torch.randn(3, 1, 2, 2, generator=generator)} for _ in range(6)]
    method, trainer = _fit(batches, accumulate_grad_batches=accumulate)

    torch.manual_seed(1)
    network, average = nn.Linear(4, 4), None
    average = {k: v.clone() for k, v in network.state_dict().items()}
    sgd = torch.optim.SGD(network.parameters(), lr=0.1)
    for update in range(6 // accumulate):
        sgd.zero_grad()
        for part in range(accumulate):
            seed_default_generators(SEED, 0, update, part)
            images = batches[update * accumulate + part]["image"].flatten(1)
            noisy = images + 0.1 * torch.randn_like(images)
            ((network(noisy) - images).square().mean() / accumulate).backward()
        sgd.step()
        weight = averaging_weight(3 * accumulate, 0, 10, None)
        for name, value in network.state_dict().items():
            average[name] += weight * (value - average[name])

    assert method.updates == trainer.global_step == 6 // accumulate
    assert method.images_seen == method.total_images == 18
    for name, value in network.state_dict().items():
        torch.testing.assert_close(method.network.state_dict()[name], value)
        torch.testing.assert_close(method.ema["network"].state_dict()[name], average[name])


def test_an_automatic_method_keeps_the_contract(digits):
    check_method(lambda: Autoencoder(nn.Linear(64, 64)), digits)
