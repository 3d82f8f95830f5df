"""Every score of sets of features, made small, and how ranks compute it together."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imgsynth.metrics.base import FeatureMetric
from imgsynth.metrics.frechet import ClassFrechetDistance, FrechetDistance
from imgsynth.metrics.inception_score import InceptionScore
from imgsynth.metrics.kernel import KernelDistance
from imgsynth.metrics.neighbours import DensityCoverage, PrecisionRecall
from imgsynth.metrics.sliced_wasserstein import SlicedWasserstein

WIDTH, CLASSES = 6, 3
METRICS: dict[str, Callable[..., FeatureMetric]] = {
    "FrechetDistance": FrechetDistance,
    "ClassFrechetDistance": lambda **options: ClassFrechetDistance(CLASSES, **options),
    "KernelDistance": lambda **options: KernelDistance(subsets=5, subset_size=40, **options),
    "InceptionScore": InceptionScore,
    "PrecisionRecall": PrecisionRecall,
    "DensityCoverage": DensityCoverage,
    "SlicedWasserstein": lambda **options: SlicedWasserstein(projections=20, **options),
}


def features(num: int, seed: int, width: int = WIDTH, **options: Any) -> Tensor:
    """Correlated, skewed and not about zero, as those of a network are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(width))
    noise = torch.randn(num, width, generator=generator) @ mix
    return torch.nn.functional.softplus(noise + seed / 10).to(**options)


REAL, FAKE = features(120, 0), features(101, 1)
LABELS = torch.arange(120) % CLASSES


def feed(metric: FeatureMetric, rows: Tensor, real: bool, batch: int = 120) -> None:
    """Update a metric with some rows of the real or the generated set."""
    source = REAL if real else FAKE
    for some in rows.split(batch):
        labels = {"labels": LABELS[some]} if isinstance(metric, ClassFrechetDistance) else {}
        metric.update(source[some], real=real, **labels)


def whole(metric: FeatureMetric, batch: int = 120, shuffle: int | None = None) -> FeatureMetric:
    """Give a metric everything; return it."""
    for real, num in ((True, len(REAL)), (False, len(FAKE))):
        rows = torch.arange(num)
        if shuffle is not None:
            rows = torch.randperm(num, generator=torch.Generator().manual_seed(shuffle))
        feed(metric, rows, real, batch)
    return metric


def flat(score: Any) -> list[float]:
    """Return all numbers of a score."""
    parts = score if isinstance(score, tuple) else (score,)
    return torch.cat([part.reshape(-1) for part in parts]).tolist()


SPLITS: dict[str, tuple[list[int], list[int]]] = {
    "uneven": ([60, 17, 43], [11, 50, 40]),
    "first has none": ([0, 70, 50], [0, 1, 100]),
    "last has none": ([119, 1, 0], [51, 50, 0]),
    "one has all": ([0, 120, 0], [101, 0, 0]),
}
"""How many real and generated images each of three ranks gets."""


def on_ranks() -> dict[str, dict[str, Any]]:
    """Compute every score for every split as one of three ranks; also where it fails at first."""
    warnings.simplefilter("error")
    rank = torch.distributed.get_rank()
    seen: dict[str, dict[str, Any]] = {name: {} for name in METRICS}
    for name, make in METRICS.items():
        for split, sizes in SPLITS.items():
            metric = make()
            for real, counts in zip((True, False), sizes, strict=True):
                mine = torch.arange(sum(counts)).split(counts)[rank]
                if len(mine):  # else this rank never calls update
                    feed(metric, mine, real, batch=7)
            seen[name][split] = flat(metric.compute())
        seen[name]["again"] = _after_an_error(make(reset_real=False), rank)
    return seen


def _after_an_error(metric: FeatureMetric, rank: int) -> dict[str, Any]:
    """Compute without generated images, then with them, then after a reset with them again."""
    feed(metric, torch.arange(rank, len(REAL), 3), real=True)
    try:
        metric.compute()
    except ValueError as error:
        said = str(error)
    scores = []
    for batch in (9, 25):
        feed(metric, torch.arange(rank, len(FAKE), 3), real=False, batch=batch)
        scores.append(flat(metric.compute()))
        metric.reset()
    return {"said": said, "scores": scores}
