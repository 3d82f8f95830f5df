from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from imgsynth.data import Arrays
from imgsynth.loggers import Record
from imgsynth.methods import HingeGAN
from imgsynth.networks import MLPDiscriminator, MLPGenerator


def make_gan(**kwargs) -> HingeGAN:
    torch.manual_seed(0)
    shape = (1, 8, 8)
    generator = MLPGenerator(shape, 2, latent_dim=4, width=4, depth=1)
    return HingeGAN(generator, MLPDiscriminator(shape, 2, width=4, depth=1), **kwargs)


def make_data(batch_size: int = 4, num: int = 20) -> Arrays:
    pixels = torch.randint(0, 256, (num, 8, 8), generator=torch.Generator().manual_seed(0))
    return Arrays(pixels.to(torch.uint8), torch.arange(num) % 2, batch_size=batch_size)


def make_trainer(folder: Path | None, *callbacks: Callback, **kwargs) -> Trainer:
    kwargs.setdefault("max_epochs", -1)
    kwargs.setdefault("log_every_n_steps", 2)
    kwargs.setdefault("enable_progress_bar", False)
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False if folder is None else Record(folder),
        callbacks=list(callbacks),
        enable_model_summary=False,
        **kwargs,
    )


@pytest.fixture
def gan() -> Callable[..., HingeGAN]:
    """Makes a tiny conditional GAN for 8x8 images of two classes; always the same one."""
    return make_gan


@pytest.fixture
def data() -> Callable[..., Arrays]:
    """Makes 20 images of 8x8 pixels in two classes: 5 updates an epoch."""
    return make_data


@pytest.fixture
def trainer() -> Callable[..., Trainer]:
    """Makes a CPU trainer with a record in the given folder and the given callbacks."""
    return make_trainer


@pytest.fixture(autouse=True)
def _few_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
