"""Scores of images: extractors of features, distances between sets of them, and protocols.

An extractor turns images into features; scores compare the features of generated and real images.
All of them take whole numbers: uint8 images ``(N, C, H, W)``.
"""

from imgsynth.metrics.base import FeatureMetric
from imgsynth.metrics.classifier import ClassifierExtractor
from imgsynth.metrics.evaluation import Evaluation
from imgsynth.metrics.extractor import Extractor, ModuleExtractor
from imgsynth.metrics.frechet import ClassFrechetDistance, FrechetDistance, frechet_distance
from imgsynth.metrics.inception import InceptionExtractor
from imgsynth.metrics.inception_score import InceptionScore
from imgsynth.metrics.kernel import KernelDistance, kernel_distance
from imgsynth.metrics.lpips import LPIPS
from imgsynth.metrics.neighbours import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)
from imgsynth.metrics.pairs import PSNR, SSIM, PairMetric
from imgsynth.metrics.pixels import PixelExtractor
from imgsynth.metrics.presets import PRESETS, Preset, preset
from imgsynth.metrics.protocol import Protocol
from imgsynth.metrics.scores import SCORES
from imgsynth.metrics.sliced_wasserstein import SlicedWasserstein
from imgsynth.metrics.torchvision import TorchvisionExtractor

__all__ = [
    "LPIPS",
    "PRESETS",
    "PSNR",
    "SCORES",
    "SSIM",
    "ClassFrechetDistance",
    "ClassifierExtractor",
    "DensityCoverage",
    "Evaluation",
    "Extractor",
    "FeatureMetric",
    "FrechetDistance",
    "InceptionExtractor",
    "InceptionScore",
    "KernelDistance",
    "ModuleExtractor",
    "PairMetric",
    "PixelExtractor",
    "PrecisionRecall",
    "Preset",
    "Protocol",
    "SlicedWasserstein",
    "TorchvisionExtractor",
    "density_coverage",
    "frechet_distance",
    "kernel_distance",
    "precision_recall",
    "preset",
]
