"""Where images come from: datamodules and the loader they share."""

from imgsynth.data.arrays import Arrays
from imgsynth.data.base import ImageDataModule, Split
from imgsynth.data.celeba import CelebA
from imgsynth.data.cifar import CIFAR10, CIFAR100
from imgsynth.data.digits import Digits
from imgsynth.data.folder import ImageFolder
from imgsynth.data.imagenet import ImageNet
from imgsynth.data.loader import ImageLoader, OrderedLoader
from imgsynth.data.mnist import MNIST, FashionMNIST
from imgsynth.data.photos import Photos
from imgsynth.data.rule import Rule
from imgsynth.data.source import MappedSource, Source, TensorSource

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Arrays",
    "CelebA",
    "Digits",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolder",
    "ImageLoader",
    "ImageNet",
    "MappedSource",
    "OrderedLoader",
    "Photos",
    "Rule",
    "Source",
    "Split",
    "TensorSource",
]
