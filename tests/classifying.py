"""A classifier that is validated, by one process or by several."""

import torch
from lightning.pytorch import Trainer
from torch import nn

from imgsynth.callbacks import quiet
from imgsynth.data import Digits
from imgsynth.methods import Classifier
from imgsynth.optim import SGD


def linear(**options) -> Classifier:
    """Return a small one without batch statistics."""
    torch.manual_seed(5)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return Classifier(network, **{"optimizer": SGD(lr=0.1), "ema_half_life": 500, **options})


def trainer(updates: int, devices: int = 1, **options) -> Trainer:
    """Return a quiet Trainer on processors."""
    quiet()
    return Trainer(
        accelerator="cpu",
        devices=devices,
        max_steps=updates,
        max_epochs=-1,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{"logger": False, "enable_checkpointing": "callbacks" in options, **options},
    )


def validated(devices: int, batch_size: int, test: int = 500) -> dict[str, float]:
    """Train for a few updates, validate, and return what is reported."""
    method, data = linear(), Digits(batch_size=batch_size, seed=3)
    data.setup()
    data._loaded["test"] = data._loaded["test"].at(torch.arange(test))
    run = trainer(4, devices, val_check_interval=4)
    run.fit(method, data)
    return {k: v.item() for k, v in run.callback_metrics.items() if k.startswith("val/")}
