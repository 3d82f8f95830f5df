"""What bfloat16 saves: our training step in ``bf16-mixed`` against the same in 32 bits.

A DCGAN (64 px, batch 64) trained by ``GAN`` under a plain ``Trainer``, in process CPU time on one
thread, in interleaved rounds of one run. Processors without bfloat16 instructions only lose.

Run: ``python benchmarks/precision.py [--rounds 9] [--steps 6] [--size 64]``
"""

import argparse
import warnings
from statistics import median

import torch
from lightning.pytorch import Trainer
from overhead import WARM_UP, Endless, Stopwatch, networks, rounds, spread

from imgsynth.callbacks import quiet
from imgsynth.methods import GAN

GOAL = 0.60


def step(precision: str, size: int, loader: Endless, steps: int) -> float:
    """Train for some steps and return CPU seconds a step."""
    watch = Stopwatch()
    trainer = Trainer(
        accelerator="cpu", precision=precision, max_steps=steps + WARM_UP, max_epochs=-1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[watch],
    )  # fmt: skip
    trainer.fit(GAN(*networks(size)), loader)
    return watch.seconds / steps


def main() -> None:
    """Print the comparison."""
    quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=6, help="steps a round")
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    loader = Endless(torch.rand(512, 3, options.size, options.size) * 2 - 1, 64)
    times = rounds(
        options.rounds,
        lambda: step("bf16-mixed", options.size, loader, options.steps),
        lambda: step("32-true", options.size, loader, options.steps),
    )
    ratio = spread([a / b for a, b in times])
    half, full = (median(t) * 1e3 for t in zip(*times, strict=True))
    print(
        f"DCGAN {options.size} px, batch 64: bf16-mixed / 32-true = {ratio} (goal: {GOAL:.2f}; "
        f"{half:.0f} and {full:.0f} ms a step)"
    )


if __name__ == "__main__":
    main()
