"""What scores cost: our parts against those of the tools whose numbers they stand for.

In process CPU time on one thread, in interleaved rounds of one run:

1. features: our Inception against torch-fidelity's, same weights and batches, resize included;
2. the Frechet distance of 2048 features, from means and covariances on, against torchmetrics'; the
   factor of the real covariance is kept, as in use;
3. evaluation as a share of a whole run: a recipe of the digits, as it is shipped.

The weights of 1 are random with batch statistics of photographs (the time does not depend on them,
the deviation does); the features of 2 are random, correlated, skewed and non-negative, as behind a
ReLU. Run: ``python benchmarks/evaluation.py [--rounds 7] [--only 1 2 3]``; needs torch-fidelity.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import skimage.data
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import _compute_fid
from torchvision.models import inception_v3

from imgsynth.callbacks import Evaluate
from imgsynth.cli import main as main_of_imgsynth
from imgsynth.metrics.frechet import Gaussian, Moments, factor, frechet_distance
from imgsynth.metrics.inception import InceptionExtractor


def seconds(work: Callable[[], Any]) -> float:
    """Return the CPU seconds of a piece of work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(rounds: int, ours: Callable[[], Any], theirs: Callable[[], Any]) -> str:
    """Time the two in turn, the order alternating; return how many times as fast ours is."""
    ours(), theirs()  # the first call prepares
    ratios = []
    for i in range(rounds):
        if i % 2:
            b, a = seconds(theirs), seconds(ours)
        else:
            a, b = seconds(ours), seconds(theirs)
        ratios.append(b / a)
    low, _, high = quantiles(ratios, n=4)
    return f"{median(ratios):.2f} [{low:.2f}, {high:.2f}] times as fast"


def photographs(size: int, num: int) -> Tensor:
    """Cut uint8 ``(num, 3, size, size)`` from what scikit-image carries."""
    pictures = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.rocket()]
    generator = torch.Generator().manual_seed(0)
    cuts = []
    for i in range(num):
        picture = torch.from_numpy(pictures[i % len(pictures)]).permute(2, 0, 1)
        y, x = (
            int(torch.randint(0, side - size + 1, (), generator=generator))
            for side in picture.shape[1:]
        )
        cuts.append(picture[:, y : y + size, x : x + size])
    return torch.stack(cuts)


# -- 1. features ------------------------------------------------------------------------------


def random_inception(path: Path, scales: tuple[float, float], shift: float) -> None:
    """Write weights of FID's Inception: random, with batch statistics of photographs.

    Args:
        path: The file.
        scales: Range of batch normalisation's scales. Large ones make a network that blows up
            rounding errors from layer to layer, small ones one that does not.
        shift: Mean of its shifts.
    """
    torch.manual_seed(0)
    network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, *scales)
            nn.init.normal_(layer.bias, shift, 0.3)
            layer.momentum = None
    with torch.no_grad():
        network.train()(photographs(299, 6) / 127.5 - 1)
    torch.save(network.state_dict(), path)


def both(path: Path) -> tuple[InceptionExtractor, nn.Module]:
    """Load a file in both."""
    wanted = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("theirs", wanted, feature_extractor_weights_path=str(path))
    return InceptionExtractor(path, expected=None), theirs


def deviation(found: Tensor, expected: Tensor) -> str:
    """Return the norm of the difference and its largest entry, both relative."""
    difference = found - expected
    norm = float(difference.norm() / expected.norm())
    largest = float(difference.abs().max() / expected.abs().max())
    return f"{norm:.1e} of the norm, at most {largest:.1e} of the largest"


def features(rounds: int) -> None:
    """Print the deviation with two kinds of weights, and the speed at two sizes."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "inception.pth"
        for kind, scales, shift in (("calm", (0.1, 0.3), 0.3), ("rough", (0.5, 1.5), 0.0)):
            random_inception(path, scales, shift)
            ours, theirs = both(path)
            images = photographs(64, 8)
            expected = theirs(images)[0]
            print(f"Inception, {kind} random weights, 64 px:")
            print(f"  ours from torch-fidelity's: {deviation(ours(images)[0], expected)}")
            exact = theirs.double()
            exact.feature_extractor_internal_dtype = torch.float64
            print(f"  torch-fidelity's from float64: {deviation(expected, exact(images)[0])}")
        ours, theirs = both(path)
        for size, num in ((32, 4), (32, 32), (256, 32)):
            images = photographs(size, num)
            run_ours, run_theirs = partial(ours, images), partial(theirs, images)
            ratio = compare(rounds, run_ours, run_theirs)
            ms = seconds(run_ours) / num * 1e3
            print(f"Inception, a batch of {num} at {size} px, {ms:.0f} ms an image: {ratio}")


# -- 2. the distance ----------------------------------------------------------------------------


def gaussian(num: int, width: int, seed: int) -> Gaussian:
    """Return mean and covariance of random features whose variances span orders of magnitude."""
    mixing = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, width)
    mix = torch.linalg.qr(torch.randn(width, width, generator=mixing)).Q * scale
    offset = 0.2 * torch.randn(width, generator=mixing)
    noise = torch.randn(num, width, generator=torch.Generator().manual_seed(seed))
    moments = Moments()
    for batch in (noise * (1 + 0.05 * seed) @ mix.T + offset).relu().split(500):
        moments.add(batch)
    return moments.gaussian()


def distance(rounds: int, num: int = 4000, width: int = 2048) -> None:
    """Print the speed and the difference of the values."""
    real, fake = (gaussian(num, width, seed) for seed in (0, 1))
    root = factor(real.covariance)
    sides = (real.mean, real.covariance, fake.mean, fake.covariance)
    ratio = compare(
        rounds, partial(frechet_distance, fake, real, root), partial(_compute_fid, *sides)
    )
    ours, theirs = frechet_distance(fake, real, root), float(_compute_fid(*sides))
    print(f"Frechet distance, {width} features: {ratio}; apart by {abs(ours / theirs - 1):.1e}")


# -- 3. a whole run -----------------------------------------------------------------------------


def share(images: str = "200k") -> None:
    """Print which part of a run's CPU time its scores take, preparation included."""
    spent = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal spent
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent += time.process_time() - start

        return call

    Evaluate.setup = timed(Evaluate.setup)
    Evaluate._evaluate = timed(Evaluate._evaluate)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(IMGSYNTH_CACHE=folder, WANDB_MODE="disabled")
        words = ["fit", "-c", "gan/hinge_digits", "--images", images, "--out", folder]
        start = time.process_time()
        main_of_imgsynth([*words, "--trainer.enable_progress_bar", "false"])
        whole = time.process_time() - start
    print(f"gan/hinge_digits, {images} images: scores are {spent / whole:.1%} of {whole:.0f} s")


def main() -> None:
    """Print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if 1 in options.only:
        features(options.rounds)
    if 2 in options.only:
        distance(options.rounds)
    if 3 in options.only:
        share()


if __name__ == "__main__":
    main()
