"""What the Frechet distance costs once the features are there: ours against torchmetrics'.

In process CPU time on one thread, in interleaved rounds of one run. Features are correlated,
skewed and non-negative, as those behind a ReLU are; the factor of the real covariance is kept, as
in use. Both start from means and covariances.

Run: ``python benchmarks/frechet.py [--rounds 5] [--width 2048] [--images 4000]``
"""

import argparse
import time
from collections.abc import Callable
from statistics import median, quantiles

import torch
from torch import Tensor
from torchmetrics.image.fid import _compute_fid

from imgsynth.metrics.frechet import Gaussian, Moments, factor, frechet_distance


def features(num: int, width: int, seed: int) -> Tensor:
    """Draw features whose variances span some orders of magnitude."""
    mixing = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, width)
    mix = torch.linalg.qr(torch.randn(width, width, generator=mixing)).Q * scale
    offset = 0.2 * torch.randn(width, generator=mixing)
    noise = torch.randn(num, width, generator=torch.Generator().manual_seed(seed))
    return (noise * (1 + 0.05 * seed) @ mix.T + offset).relu()


def gaussian(rows: Tensor) -> Gaussian:
    """Return their mean and covariance."""
    moments = Moments()
    for batch in rows.split(500):
        moments.add(batch)
    return moments.gaussian()


def seconds(function: Callable[[], float]) -> tuple[float, float]:
    """Return CPU seconds and the value."""
    start = time.process_time()
    value = function()
    return time.process_time() - start, value


def main() -> None:
    """Print the ratio of the times and the difference of the values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--images", type=int, default=4000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    real, fake = (gaussian(features(options.images, options.width, seed)) for seed in (0, 1))
    start = time.process_time()
    root = factor(real.covariance)
    once = time.process_time() - start
    ways = {
        "ours": lambda: frechet_distance(fake, real, root),
        "theirs": lambda: float(
            _compute_fid(real.mean, real.covariance, fake.mean, fake.covariance)
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    values = {}
    for i in range(options.rounds):
        for name in list(ways) if i % 2 else reversed(list(ways)):
            spent, values[name] = seconds(ways[name])
            times[name].append(spent)
    ratios = [a / b for a, b in zip(times["ours"], times["theirs"], strict=True)]
    low, _, high = quantiles(ratios, n=4)
    difference = abs(values["ours"] / values["theirs"] - 1)
    print(
        f"{options.width} features of {options.images} images: ours / torchmetrics = "
        f"{median(ratios):.3f} [{low:.3f}, {high:.3f}] (torchmetrics: "
        f"{median(times['theirs']):.2f} s; the factor, once: {once:.2f} s)"
    )
    print(f"values {values['ours']:.10g} and {values['theirs']:.10g}, apart by {difference:.1e}")


if __name__ == "__main__":
    main()
