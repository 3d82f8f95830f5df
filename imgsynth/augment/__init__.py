"""Augmentations of batches on their device."""

from imgsynth.augment.flip import RandomFlip
from imgsynth.augment.noise import GaussianNoise
from imgsynth.augment.translation import RandomTranslation

__all__ = ["GaussianNoise", "RandomFlip", "RandomTranslation"]
