"""Augmentations of batches on their device."""

from imgsynth.augment.flip import RandomFlip
from imgsynth.augment.translation import RandomTranslation

__all__ = ["RandomFlip", "RandomTranslation"]
