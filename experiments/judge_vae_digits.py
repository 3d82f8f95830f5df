"""Judge a VAE of scikit-learn's digits by a classifier that has never seen its images.

    python experiments/judge_vae_digits.py RUN_OR_CHECKPOINT [--seed 0]

Clear: share of the samples of which the classifier is sure, with a confidence above 0.9.
Recognised: share of the samples that it reads as the class that was asked for. Kept: share of the
reconstructions of the 500 test images that it reads as it reads the images themselves.

Protocol: 1,000 samples, sample i of class i % 10 (of no class, if the model has none); 500
reconstructions at the posterior's mean; rounded to 8 bits; averaged weights. The classifier is the
one that ships (classification/digits, 0.996 of the test images read rightly), which was trained on
the same 1,297 training images. One sample is 0.001, one reconstruction 0.002.
"""

import argparse
import sys
from pathlib import Path

import torch

import imgsynth
from imgsynth.data import Digits
from imgsynth.images import from_uint8, to_uint8
from imgsynth.methods import Method, Reconstructor, Sampler

NUM = 1_000
SURE = 0.9


def judge(method: Method, seed: int = 0) -> dict[str, float]:
    """Return the figures of a method, and ``real``: how many test images are clear themselves.

    Raises:
        ValueError: If the method does not sample and reconstruct images of 1x8x8 pixels.
    """
    if not (isinstance(method, Sampler) and isinstance(method, Reconstructor)):
        raise ValueError(
            f"Expected a method that samples and reconstructs, got {type(method).__name__}."
        )
    data = Digits()
    classifier = imgsynth.judge(data)
    images, labels = next(data.reference("test", 500))
    given = labels if method.num_classes else None
    samples = to_uint8(method.sample(NUM, seed=seed))
    restored = to_uint8(method.reconstruct(from_uint8(images), given))
    if samples.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"Expected images of shape {data.image_shape}, got {tuple(samples.shape[1:])}."
        )
    with torch.no_grad():
        read, real, again = (classifier(x)[1].softmax(1) for x in (samples, images, restored))
    figures = {"clear": share(read.amax(1) > SURE), "real": share(real.amax(1) > SURE)}
    if method.num_classes:
        figures["recognised"] = share(read.argmax(1) == torch.arange(NUM) % method.num_classes)
    figures["kept"] = share(again.argmax(1) == real.argmax(1))
    return figures


def share(right: torch.Tensor) -> float:
    """Return how many are."""
    return right.double().mean().item()


def main() -> int:
    """Print the figures of a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run, or a checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="chooses the samples (0)")
    given = parser.parse_args()
    try:
        figures = judge(imgsynth.load(given.run), given.seed)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Clear (confidence above {SURE}): {figures['clear']:.3f} of {NUM:,} samples")
    if "recognised" in figures:
        print(f"Recognised as the class asked for: {figures['recognised']:.3f}")
    print(f"Class kept: {figures['kept']:.3f} of 500 reconstructions")
    print(f"(Clear among the 500 real test images: {figures['real']:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
