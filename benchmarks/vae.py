"""Our VAE against pythae's: what a step costs, and what the trained models are worth.

Two comparisons on Fashion-MNIST, binarised by Bernoulli draws, on one thread:

1. CPU time of a step, in interleaved rounds of one run. *Whole*: each side's own trainer and data
   path; ours draws binary images anew for each batch, pythae's reads a fixed set. *Ready*: the same
   tensors for both, cut beforehand; ours under its Trainer, pythae's model and optimiser in a bare
   loop. pythae's progress bar is left out. Ours once without averaged weights, which pythae does
   not have, and once with them.
2. test ELBO and IWAE-50 after training both on as many images, drawn anew for both, from the same
   initial weights. One evaluator scores both on all 10,000 test images, drawn with a fixed seed:
   pythae's weights are brought into our networks.

The networks are pythae's default MLP (784-512-16-512-784) and our convolutional one, which pythae
is given. Run: ``python benchmarks/vae.py --root data [--rounds 15] [--only 1 2]``; needs pythae,
``pip install --no-deps pythae==0.1.2``.
"""

import argparse
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from overhead import WARM_UP, Stopwatch, spread
from torch import Tensor, nn

from imgsynth.data import FashionMNIST
from imgsynth.images import from_uint8
from imgsynth.likelihoods import Bernoulli
from imgsynth.losses import normal_kl
from imgsynth.methods import VAE
from imgsynth.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from imgsynth.optim import Adam

try:
    from pythae.data.datasets import BaseDataset, DatasetOutput
    from pythae.models import VAE as PythaeVAE  # noqa: N811
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback
except ImportError as error:
    raise SystemExit(f"pip install --no-deps pythae==0.1.2 (and what it misses: {error})") from None

SHAPE = (1, 28, 28)
LATENT_DIM = 16
BATCH = 100
NETWORKS = {"mlp": (MLPEncoder, MLPDecoder), "conv": (ConvEncoder, ConvDecoder)}


# -- the two sides ----------------------------------------------------------------------------


def networks(kind: str, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Return our encoder and decoder with the weights of a seed."""
    torch.manual_seed(seed)
    encoder, decoder = NETWORKS[kind]
    return encoder(SHAPE, latent_dim=LATENT_DIM), decoder(SHAPE, latent_dim=LATENT_DIM)


def ours(encoder: nn.Module, decoder: nn.Module, half_life: int = 0) -> VAE:
    """Return our method, by default without averages."""
    adam = Adam(lr=1e-3, beta1=0.9)
    return VAE(encoder, decoder, likelihood=Bernoulli(), optimizer=adam, ema_half_life=half_life)


class Encoder(BaseEncoder):
    """Our encoder as pythae expects it; it sees images in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> ModelOutput:
        mu, logvar = self.network(x)
        return ModelOutput(embedding=mu, log_covariance=logvar)


class Decoder(BaseDecoder):
    """Our decoder as pythae expects it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))


def pairs(theirs: PythaeVAE, encoder: nn.Module, decoder: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Yield the parameters of pythae's default MLP that belong together with ours."""
    first, heads = encoder.layers[1], encoder.heads
    mu, logvar = theirs.encoder.embedding, theirs.encoder.log_var
    linear = [(theirs.encoder.layers[0][0], first)]
    linear += [(theirs.decoder.layers[n][0], decoder.layers[2 * n]) for n in range(2)]
    for name in ("weight", "bias"):
        yield from ((getattr(a, name).data, getattr(b, name).data) for a, b in linear)
        yield from zip(
            (getattr(mu, name).data, getattr(logvar, name).data),
            getattr(heads, name).data.chunk(2),
            strict=True,
        )


def pythae_with(kind: str, encoder: nn.Module, decoder: nn.Module) -> PythaeVAE:
    """Return pythae's model with the weights of our networks."""
    config = VAEConfig(input_dim=SHAPE, latent_dim=LATENT_DIM, reconstruction_loss="bce")
    if kind != "mlp":
        return PythaeVAE(config, encoder=Encoder(encoder), decoder=Decoder(decoder))
    theirs = PythaeVAE(config)
    for a, b in pairs(theirs, encoder, decoder):
        a.copy_(b)
    return theirs


class FromUnit(nn.Module):
    """An encoder trained on images in [0, 1], given images in [-1, 1]."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Any:
        return self.encoder((images + 1) / 2)


def from_pythae(kind: str, theirs: PythaeVAE) -> VAE:
    """Return our method with the weights of pythae's model, for the one evaluator."""
    encoder, decoder = networks(kind)
    if kind == "mlp":
        for a, b in pairs(theirs, encoder, decoder):
            b.copy_(a)
    else:
        encoder, decoder = theirs.encoder.network, theirs.decoder.network
    return ours(FromUnit(encoder), decoder)


def trainer_of(theirs: PythaeVAE, data: BaseDataset, folder: str, seed: int = 0) -> BaseTrainer:
    """Return pythae's trainer, ready for ``train_step``."""
    config = BaseTrainerConfig(
        output_dir=folder, per_device_train_batch_size=BATCH, learning_rate=1e-3, seed=seed,
        no_cuda=True,
    )  # fmt: skip
    trainer = BaseTrainer(theirs, data, training_config=config)
    trainer.prepare_training()
    trainer.callback_handler = CallbackHandler([TrainingCallback()], model=theirs)
    return trainer


def fit(module: LightningModule, steps: int, watch: Stopwatch, **given: Any) -> None:
    """Train ours for some steps."""
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, limit_val_batches=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[watch],
    )  # fmt: skip
    trainer.fit(module, **given)


# -- 1. speed ---------------------------------------------------------------------------------


class Ready:
    """Batches cut beforehand, for ever."""

    def __init__(self, images: Tensor) -> None:
        self.batches = [{"image": part.clone()} for part in images.split(BATCH)]

    def __iter__(self) -> Any:
        while True:
            yield from self.batches


def time_ours(kind: str, steps: int, half_life: int, **given: Any) -> float:
    """Return CPU seconds a step of our Trainer."""
    watch = Stopwatch()
    fit(ours(*networks(kind), half_life), steps + WARM_UP, watch, **given)
    return watch.seconds / steps


@contextmanager
def without_lightning() -> Iterator[None]:
    """Undo what importing Lightning costs each step of a torch optimiser (a look for GPUs)."""
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = os.environ.pop(name, None)
    yield
    if before is not None:
        os.environ[name] = before


@without_lightning()
def time_pythae_whole(kind: str, steps: int, data: Tensor, folder: str) -> float:
    """Return CPU seconds a step of pythae's ``train_step``."""
    theirs = pythae_with(kind, *networks(kind))
    for num in (WARM_UP, steps):
        part = data[: num * BATCH]
        trainer = trainer_of(theirs, BaseDataset(part, torch.zeros(len(part))), folder)
        start = time.process_time()
        trainer.train_step(1)
    return (time.process_time() - start) / steps


@without_lightning()
def time_pythae_ready(kind: str, steps: int, data: Tensor) -> float:
    """Return CPU seconds a step of pythae's model and Adam on ready tensors."""
    theirs = pythae_with(kind, *networks(kind)).train()
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    for step, batch in enumerate(Ready(data)):
        if step == WARM_UP:
            start = time.process_time()
        if step == steps + WARM_UP:
            break
        loss = theirs({"data": batch["image"]}).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
    return (time.process_time() - start) / steps


def interleaved(rounds: int, works: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Time each of the works once a round, a different one first each time."""
    times: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(works[name]())
    return times


def speed(kind: str, rounds: int, steps: int, data: FashionMNIST, gray: Tensor) -> None:
    """Print the ratios of CPU times of a step."""
    binary = torch.bernoulli(gray[: steps * BATCH], generator=torch.Generator().manual_seed(0))
    few = binary[: 20 * BATCH]
    with tempfile.TemporaryDirectory() as folder:
        works = {
            "whole": lambda: time_ours(kind, steps, 0, datamodule=data),
            "whole, averaged": lambda: time_ours(kind, steps, 10_000, datamodule=data),
            "whole, pythae": lambda: time_pythae_whole(kind, steps, binary, folder),
            "ready": lambda: time_ours(kind, steps, 0, train_dataloaders=Ready(2 * few - 1)),
            "ready, averaged": lambda: time_ours(
                kind, steps, 10_000, train_dataloaders=Ready(2 * few - 1)
            ),
            "ready, pythae": lambda: time_pythae_ready(kind, steps, few),
        }
        times = interleaved(rounds, works)
    for part in ("whole", "ready"):
        theirs = times[f"{part}, pythae"]
        print(f"{kind}, {part}: pythae {median(theirs) * 1e3:.2f} ms a step of {BATCH} images")
        for name in (part, f"{part}, averaged"):
            ratio = spread([a / b for a, b in zip(times[name], theirs, strict=True)])
            ms = median(times[name]) * 1e3
            print(f"{kind}, {name}: ours / pythae = {ratio} ({ms:.2f} ms)", flush=True)


# -- 2. quality -------------------------------------------------------------------------------


class Drawn(BaseDataset):
    """Draws binary images anew at each access, as our data does."""

    def __getitem__(self, index: int) -> DatasetOutput:
        return DatasetOutput(data=torch.bernoulli(self.data[index]), labels=self.labels[index])


def scores(vae: VAE, images: Tensor, latents: int = 10) -> tuple[float, float]:
    """Return mean ELBO and IWAE-50 in nats: the KL in closed form, 10 latents an image."""
    torch.manual_seed(0)
    total = 0.0
    with vae.evaluating():
        for part in images.split(500):
            mu, logvar = vae.posterior(part)
            total -= float(normal_kl(mu, logvar).sum())
            for _ in range(latents):
                z = mu + (0.5 * logvar).exp() * torch.randn(mu.shape)
                log_mass = vae.likelihood.log_mass(part, vae.outputs(z))
                total += float(log_mass.sum()) / latents
    return total / len(images), float(vae.log_likelihood(images, num_samples=50).mean())


def quality(kind: str, seed: int, epochs: int, data: FashionMNIST, gray: Tensor) -> None:
    """Print the test scores of both."""
    test = from_uint8(torch.cat([images for images, _ in data.reference("test")]))
    steps = epochs * (len(gray) // BATCH)

    def show(name: str, vae: VAE, seconds: float) -> None:
        elbo, iwae = scores(vae, test)
        print(
            f"{kind}, seed {seed}, {epochs} epochs, {name}: ELBO {elbo:.2f}, IWAE-50 {iwae:.2f} "
            f"({seconds:.0f} s of CPU time)",
            flush=True,
        )

    encoder, decoder = networks(kind, seed)
    theirs = pythae_with(kind, *networks(kind, seed))
    vae = ours(encoder, decoder, half_life=10_000)
    torch.manual_seed(seed)
    start = time.process_time()
    fit(vae, steps, Stopwatch(), datamodule=data)
    seconds = time.process_time() - start
    show("ours", ours(encoder, decoder), seconds)
    show("ours, averaged", vae, seconds)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(theirs, Drawn(gray, torch.zeros(len(gray))), folder, seed)
        start = time.process_time()
        for epoch in range(epochs):
            trainer.train_step(epoch + 1)
        seconds = time.process_time() - start
    show("pythae", from_pythae(kind, theirs), seconds)


def main() -> None:
    """Print the two comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data", help="the folder that holds FashionMNIST/raw")
    parser.add_argument("--only", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=0, help="steps a round; 0 chooses")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    data = FashionMNIST(options.root, batch_size=BATCH, binarise=True)
    gray = torch.cat([images for images, _ in data.reference("train")]) / 255
    for kind in options.networks:
        if 1 in options.only:
            speed(kind, options.rounds, options.steps or (200 if kind == "mlp" else 30), data, gray)
        if 2 in options.only:
            for seed in options.seeds:
                quality(kind, seed, options.epochs, data, gray)


if __name__ == "__main__":
    main()
