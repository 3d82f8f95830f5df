"""Where images come from: datamodules and the loader they share."""

from imgsynth.data.arrays import Arrays
from imgsynth.data.base import ImageDataModule, Split
from imgsynth.data.digits import Digits
from imgsynth.data.loader import ImageLoader, OrderedLoader, Source, TensorSource
from imgsynth.data.mnist import MNIST, FashionMNIST

__all__ = [
    "MNIST",
    "Arrays",
    "Digits",
    "FashionMNIST",
    "ImageDataModule",
    "ImageLoader",
    "OrderedLoader",
    "Source",
    "Split",
    "TensorSource",
]
