"""What the engine costs: our training step against hand-written ones.

Two comparisons, both in process CPU time on one thread, in interleaved rounds of one run:

1. a DCGAN (batch 64, fp32) trained by ``GAN`` under a plain ``Trainer`` against a naive
   hand-written loop: the ratio of the times of a step;
2. near-empty networks with 12 loss terms against a bare Trainer with manual optimisation that
   does the same averaging and schedule but reports nothing: the difference in ms a step.

Run: ``python benchmarks/overhead.py [--rounds 9] [--sizes 32 64]``
"""

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional

from imgsynth.methods import GAN
from imgsynth.methods.adversarial import AdversarialMethod
from imgsynth.networks import DCGANDiscriminator, DCGANGenerator
from imgsynth.optim import Adam, LinearDecay
from imgsynth.types import Batch, Losses

WARM_UP = 3


class Endless:
    """Batches cut from one tensor, for ever."""

    def __init__(self, images: Tensor, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def __iter__(self) -> Any:
        while True:
            for index in torch.randperm(len(self.images)).split(self.batch_size):
                if len(index) == self.batch_size:
                    yield {"image": self.images[index]}


class Stopwatch(Callback):
    """CPU seconds a step, warm-up and set-up left out."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == WARM_UP:
            self.start = time.process_time()

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.seconds = time.process_time() - self.start


def fit(module: LightningModule, loader: Endless, steps: int, counted: int = 1) -> float:
    """Train for some steps and return CPU seconds a step.

    ``counted`` is how many optimiser steps Lightning counts a batch: 2 in a plain two-player
    module, 1 in ours.
    """
    watch = Stopwatch()
    trainer = Trainer(
        accelerator="cpu", max_steps=counted * (steps + WARM_UP), max_epochs=-1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[watch],
    )  # fmt: skip
    trainer.fit(module, loader)
    return watch.seconds / steps


# -- 1. a real network against a naive loop ---------------------------------------------------


def networks(size: int) -> tuple[nn.Module, nn.Module]:
    """Return the DCGAN of the comparison."""
    return DCGANGenerator((3, size, size)), DCGANDiscriminator((3, size, size))


def naive(generator: nn.Module, discriminator: nn.Module, loader: Endless, steps: int) -> float:
    """One shared fake batch, detached; two discriminator passes; BCE; no averaging."""
    adam_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    adam_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    bce = functional.binary_cross_entropy_with_logits
    for step, batch in enumerate(loader):
        if step == WARM_UP:
            start = time.process_time()
        if step == steps + WARM_UP:
            break
        real = batch["image"]
        fake = generator(torch.randn(len(real), 100))
        adam_d.zero_grad()
        on_real, on_fake = discriminator(real), discriminator(fake.detach())
        loss = bce(on_real, torch.ones_like(on_real)) + bce(on_fake, torch.zeros_like(on_fake))
        loss.backward()
        adam_d.step()
        adam_g.zero_grad()
        logits = discriminator(fake)
        bce(logits, torch.ones_like(logits)).backward()
        adam_g.step()
    return (time.process_time() - start) / steps


# -- 2. near-empty networks against a bare Trainer --------------------------------------------


class TwelveTerms(AdversarialMethod):
    """Six terms a player on networks of a few weights."""

    def fakes(self, batch: Batch) -> Batch:
        return {"image": self.generator(torch.randn(len(batch["image"]), 4))}

    def discriminator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        real, fake = self.discriminator(batch["image"]), self.discriminator(fakes["image"])
        return {f"t{i}": t for i, t in enumerate(six(real, fake))}

    def generator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        fake = self.discriminator(fakes["image"])
        return {f"t{i}": t for i, t in enumerate(six(fake, fake))}


def six(a: Tensor, b: Tensor) -> list[Tensor]:
    """Six cheap scalars."""
    return [a.mean(), b.mean(), a.square().mean(), b.square().mean(), a.sum(), b.sum()]


class Bare(LightningModule):
    """The same two players by hand: no names, no report, nothing that resumes."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = generator, discriminator
        self.average = copy.deepcopy(generator).requires_grad_(False)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        players = (self.generator, self.discriminator)
        return [torch.optim.Adam(p.parameters(), lr=2e-4, betas=(0.5, 0.999)) for p in players]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        adam_g, adam_d = self.optimizers()
        for optimizer in (adam_g, adam_d):
            optimizer.param_groups[0]["lr"] = 2e-4 * (1 - batch_idx / 1e6)
        fake = self.generator(torch.randn(len(batch["image"]), 4))
        adam_d.zero_grad()
        loss = sum(six(self.discriminator(batch["image"]), self.discriminator(fake.detach())))
        self.manual_backward(loss)
        adam_d.step()
        adam_g.zero_grad()
        self.discriminator.requires_grad_(False)
        logits = self.discriminator(fake)
        self.manual_backward(sum(six(logits, logits)))
        adam_g.step()
        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            lives = list(self.generator.parameters())
            torch._foreach_lerp_(list(self.average.parameters()), lives, 0.01)


def tiny() -> tuple[nn.Module, nn.Module]:
    """Return networks of a few weights."""
    generator = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (1, 2, 2)))
    return generator, nn.Sequential(nn.Flatten(), nn.Linear(4, 1))


def rounds(
    number: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> list[tuple[float, float]]:
    """Time the two in turn, the order alternating."""
    times = []
    for i in range(number):
        if i % 2:
            b, a = theirs(), ours()
        else:
            a, b = ours(), theirs()
        times.append((a, b))
    return times


def spread(values: list[float]) -> str:
    """Return the median and the quartiles."""
    low, _, high = quantiles(values, n=4)
    return f"{median(values):.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Print the two comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 64])
    parser.add_argument("--steps", type=int, default=0, help="steps a round; 0 chooses")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    schedule = LinearDecay(start="1M", end="100M")
    for size in options.sizes:
        loader = Endless(torch.rand(512, 3, size, size) * 2 - 1, 64)
        steps = options.steps or (16 if size <= 32 else 6)
        times = rounds(
            options.rounds,
            lambda: fit(GAN(*networks(size)), loader, steps),  # noqa: B023
            lambda: naive(*networks(size), loader, steps),  # noqa: B023
        )
        ratio = spread([a / b for a, b in times])
        ms = median(b for _, b in times) * 1e3
        print(f"DCGAN {size} px, batch 64: ours / naive = {ratio} (naive: {ms:.0f} ms a step)")
    loader = Endless(torch.rand(512, 1, 2, 2), 4)
    steps = options.steps or 400

    def ours() -> float:
        kwargs = {"generator_schedule": schedule, "discriminator_schedule": schedule}
        return fit(TwelveTerms(*tiny(), generator_optimizer=Adam(), **kwargs), loader, steps)

    times = rounds(options.rounds, ours, lambda: fit(Bare(*tiny()), loader, steps, counted=2))
    extra = spread([(a - b) * 1e3 for a, b in times])
    ms = median(b for _, b in times) * 1e3
    print(
        f"12 terms, near-empty networks: ours - bare Trainer = {extra} ms a step (bare: {ms:.2f})"
    )


if __name__ == "__main__":
    main()
