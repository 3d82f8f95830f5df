"""Augmentations of batches on their device."""

from imgsynth.augment.translation import RandomTranslation

__all__ = ["RandomTranslation"]
