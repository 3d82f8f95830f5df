"""Judge a class-conditional generator of scikit-learn's digits by two figures.

    python experiments/judge_digits.py RUN_OR_CHECKPOINT [--seed 0] [--raw]

Recognised: share of the samples that a support vector machine, trained on the 1,297 real training
images, reads as the class that was asked for. Worth: share of the 500 real test images that the
same machine reads rightly when it was trained on the samples alone. The first falls when samples
are unclear, the second also when they lack variety.

Protocol: 130 samples a class, sample i of class i % 10; rounded to 8 bits, as saved PNGs are, and
divided by 255; averaged weights unless --raw; SVC(gamma=0.064, C=10) on the 64 pixels; real scans
from scikit-learn, level / 16, in the split of imgsynth.data.Digits: the first 1,297 of
np.random.default_rng(0).permutation(1797) train, the last 500 test. One sample is 0.0008 of the
first figure, one image 0.002 of the second.
"""

import argparse
import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import imgsynth
from imgsynth.data import Digits
from imgsynth.images import to_uint8
from imgsynth.methods import Method, Sampler

PER_CLASS = 130


def judge(method: Method, seed: int = 0, *, ema: bool = True) -> dict[str, float]:
    """Return the figures of a method and, for comparison, of real images.

    Args:
        method: Samples digits: 1x8x8 pixels, ten classes.
        seed: Chooses the samples.
        ema: Whether to sample with the averaged weights.

    Returns:
        ``recognised``, ``worth``, and ``real``: the share of real test images that the machine
        trained on real training images reads rightly, which is what both aim at.

    Raises:
        ValueError: If the method does not sample ten classes of 1x8x8 pixels.
    """
    data = Digits()
    classes = data.num_classes
    if not isinstance(method, Sampler) or method.num_classes != classes:
        num = getattr(method, "num_classes", 0)
        raise ValueError(
            f"Expected a generator conditional on {classes} digits, got {type(method).__name__} "
            f"with {num} classes; train it on --data Digits with num_classes={classes}."
        )
    samples = method.sample(PER_CLASS * classes, seed=seed, ema=ema)
    if tuple(samples.shape[1:]) != data.image_shape:
        raise ValueError(
            f"Expected samples of shape {data.image_shape} (channels, height, width), got "
            f"{tuple(samples.shape[1:])}: the judge reads digits at their own size, 8x8."
        )
    asked = np.arange(len(samples)) % classes
    made = to_uint8(samples.cpu()).flatten(1).numpy() / 255.0
    train, train_labels = _real(slice(None, -500))
    test, test_labels = _real(slice(-500, None))
    reader = _machine().fit(train, train_labels)
    return {
        "recognised": reader.score(made, asked),
        "worth": _machine().fit(made, asked).score(test, test_labels),
        "real": reader.score(test, test_labels),
    }


def _machine() -> SVC:
    return SVC(gamma=0.064, C=10)


def _real(split: slice) -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))[split]
    return digits.data[order] / 16.0, digits.target[order]


def main() -> int:
    """Print the figures of the run or checkpoint on the command line."""
    lines = (__doc__ or "").strip().split("\n\n")
    parser = argparse.ArgumentParser(
        description=lines[0],
        epilog="\n\n".join(lines[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", help="a run folder (its newest checkpoint), or a checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="chooses the samples; default 0")
    parser.add_argument("--raw", action="store_true", help="live weights, not the averaged ones")
    given = parser.parse_args()
    try:
        method = imgsynth.load(given.run)
        found = judge(method, given.seed, ema=not given.raw)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    rows = [
        ("", "samples", "real images"),
        ("Recognised", f"{found['recognised']:.3f}", f"{found['real']:.3f}"),
        ("Worth", f"{found['worth']:.3f}", f"{found['real']:.3f}"),
    ]
    print(f"{given.run}: {method.images_seen:,} images seen")
    for name, samples, real in rows:
        print(f"{name:<12}{samples:>9}{real:>14}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
