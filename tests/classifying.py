"""Classifiers that are validated and judges that are trained, by one process or by several."""

import os
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import nn

from imgsynth import judging
from imgsynth.callbacks import quiet
from imgsynth.data import Digits
from imgsynth.data.base import ImageDataModule
from imgsynth.judging import judge
from imgsynth.methods import Classifier
from imgsynth.networks import SmallCNN
from imgsynth.optim import SGD

SMALL = {"images": 512, "device": "cpu"}


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


class Forgetful(SmallCNN):
    """Drops features in training: the step draws random numbers."""

    def forward(self, images):
        """Return logits."""
        return self.head(nn.functional.dropout(self.features(images), 0.5, self.training))


class Stripes(ImageDataModule):
    """Horizontal or vertical stripes in noise, gray 8x8."""

    def __init__(self, num=200, splits=("train",), dtype=torch.uint8, classes=2, **kwargs):
        super().__init__(**kwargs)
        self.num, self.splits, self.dtype, self.classes = num, splits, dtype, classes

    def load_split(self, split):
        rng = np.random.default_rng(len(split))
        labels = np.arange(self.num) % 2
        lines = (np.arange(8) // 2 % 2)[:, None] * np.ones((8, 8))
        clean = np.where(labels[:, None, None], lines, lines.T)
        images = 100 * clean + rng.integers(0, 100, (self.num, 8, 8))
        if self.dtype == torch.uint16:
            images = images * 256
        tensor = torch.from_numpy(images[:, None].astype(str(self.dtype)[6:]))
        labels = torch.from_numpy(labels % self.classes) if self.classes else None
        return tensor, labels


def weights(extractor) -> str:
    """Return the hash of an extractor's weights."""
    return extractor.identity()["weights"]


def judge_stripes(folder: str, answers) -> None:
    """Ask for the judge in a process of its own, and note if it trains."""
    torch.set_num_threads(1)
    train = judging._train

    def noted(*arguments):
        Path(folder, f"trained-by-{os.getpid()}").touch()
        return train(*arguments)

    judging._train = noted
    answers.put(weights(judge(Stripes(), folder=folder, **SMALL)))
