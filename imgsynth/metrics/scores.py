"""The scores there are by name: what each needs, which way is better, and how it is computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from imgsynth.metrics.frechet import frechet_distance
from imgsynth.metrics.inception_score import inception_score
from imgsynth.metrics.kernel import kernel_distance
from imgsynth.metrics.neighbours import density_coverage, precision_recall
from imgsynth.metrics.reference import FeatureSet
from imgsynth.metrics.sliced_wasserstein import sliced_wasserstein

Space = Literal["inception", "other", "any"]


@dataclass(frozen=True)
class Score:
    """One score.

    Args:
        name: Its name.
        better: Whether ``low`` or ``high`` values are better.
        text: What it is, in a line.
        compute: From generated and real features to values by suffix: ``""`` is the score itself.
        space: Whether it may be named so in the feature space of Inception, in any other, or in
            both: a score in another space than Inception's is never called FID.
        needs: What images or extractor must have: ``gaussian``, ``logits``, ``labels``.
        parameters: What else it depends on.
        least: Images it needs on each side.
    """

    name: str
    better: Literal["low", "high"]
    text: str
    compute: Callable[[FeatureSet, FeatureSet], dict[str, float]]
    space: Space = "any"
    needs: frozenset[str] = frozenset()
    parameters: dict[str, Any] = field(default_factory=dict)
    least: int = 2


_SUBSETS = 100
_SUBSET_SIZE = 1000
_SPLITS = 10
_DRAWS = 2020
_PROJECTIONS = 256


def _frechet(fake: FeatureSet, real: FeatureSet) -> dict[str, float]:
    return {"": frechet_distance(fake.gaussian, real.gaussian, real.factor)}


def _by_class(fake: FeatureSet, real: FeatureSet) -> dict[str, float]:
    assert fake.labels is not None
    assert real.labels is not None
    each = {}
    for label in sorted(set(real.labels.tolist())):
        generated = fake.at((fake.labels == label).nonzero()[:, 0])
        theirs = real.at((real.labels == label).nonzero()[:, 0])
        each[f"/{label}"] = frechet_distance(generated.gaussian, theirs.gaussian)
    return {"": sum(each.values()) / len(each), **each}


def _inception(fake: FeatureSet, real: FeatureSet) -> dict[str, float]:
    assert fake.logits is not None
    mean, std = inception_score(fake.logits, splits=_SPLITS, seed=_DRAWS)
    return {"": mean, "_std": std}


def _kernel(fake: FeatureSet, real: FeatureSet) -> dict[str, float]:
    mean, std = kernel_distance(
        real.features, fake.features, subsets=_SUBSETS, subset_size=_SUBSET_SIZE, seed=_DRAWS
    )
    return {"": mean, "_std": std}


def _of_neighbours(
    name: str, text: str, function: Callable[..., tuple[float, float]], k: int, place: int
) -> Score:
    """Make one of two scores that are computed together, of k neighbours."""

    def compute(fake: FeatureSet, real: FeatureSet) -> dict[str, float]:
        both = fake.once(
            function.__name__,
            real,
            lambda: function(real.features, fake.features, k=k, real_radii=real.radii(k)),
        )
        return {"": both[place]}

    return Score(name, "high", text, compute, parameters={"neighbours": k}, least=k + 1)


def _sliced(fake: FeatureSet, real: FeatureSet) -> dict[str, float]:
    return {"": sliced_wasserstein(real.features, fake.features, projections=_PROJECTIONS, seed=0)}


_KERNEL = {"kernel": "(x.y/d + 1)^3", "subsets": _SUBSETS, "subset_size": _SUBSET_SIZE}
_GAUSSIAN, _LOGITS = frozenset({"gaussian"}), frozenset({"logits"})
_CLASSES = frozenset({"gaussian", "labels"})

SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score("fid", "low", "Frechet distance of Inception features", _frechet, "inception",
              _GAUSSIAN),
        Score("is", "high", "Inception score", _inception, "inception", _LOGITS,
              {"splits": _SPLITS, "seed": _DRAWS}, _SPLITS),
        Score("kid", "low", "kernel distance (MMD) of Inception features", _kernel, "inception",
              parameters={**_KERNEL, "seed": _DRAWS}, least=_SUBSET_SIZE),
        Score("fid_class", "low", "FID of each class, and their mean", _by_class, "inception",
              _CLASSES),
        Score("fd", "low", "Frechet distance of features", _frechet, "other", _GAUSSIAN),
        Score("cls_score", "high", "what the Inception score is, by the data's own classes",
              _inception, "other", _LOGITS, {"splits": _SPLITS, "seed": _DRAWS}, _SPLITS),
        Score("kd", "low", "kernel distance (MMD) of features", _kernel, "other",
              parameters={**_KERNEL, "seed": _DRAWS}, least=_SUBSET_SIZE),
        Score("fd_class", "low", "Frechet distance of each class, and their mean", _by_class,
              "other", _CLASSES),
        _of_neighbours("precision", "share of generated images among the real ones",
                       precision_recall, 3, 0),
        _of_neighbours("recall", "share of real images among the generated ones",
                       precision_recall, 3, 1),
        _of_neighbours("density", "real neighbourhoods an image lies in, over their number",
                       density_coverage, 5, 0),
        _of_neighbours("coverage", "share of real images with a generated neighbour",
                       density_coverage, 5, 1),
        Score("swd", "low", "sliced Wasserstein distance of features", _sliced,
              parameters={"projections": _PROJECTIONS, "order": 2, "seed": 0}),
    )
}  # fmt: skip


def parse(metrics: str | Sequence[str]) -> list[str]:
    """Return the names in a list or in text like ``fid,is,kid``.

    Raises:
        ValueError: If there is none, one twice or an unknown one.

    Example:
        >>> parse("fd, recall")
        ['fd', 'recall']
    """
    given = metrics.split(",") if isinstance(metrics, str) else list(metrics)
    names = [name.strip().lower() for name in given]
    unknown = [name for name in names if name not in SCORES]
    if unknown or not names or len(set(names)) < len(names):
        what = f"no score {unknown[0]!r}" if unknown else f"one or more, each once; got {names}"
        raise ValueError(f"metrics: {what}. There are {', '.join(SCORES)}.")
    return names


def asks_for_inception(names: Sequence[str]) -> bool:
    """Say whether scores are asked for that only Inception's features can give.

    Raises:
        ValueError: If there are such and such of other spaces.
    """
    spaces = {SCORES[name].space: name for name in names}
    if {"inception", "other"} <= set(spaces):
        raise ValueError(
            f"{spaces['inception']} is a score in the space of the Inception network, "
            f"{spaces['other']} one in any other space: one evaluation has one space. Leave one "
            "of the two out."
        )
    return "inception" in spaces


def check_space(names: Sequence[str], inception: bool, extractor: str) -> None:
    """Refuse names that the feature space forbids.

    Args:
        names: The scores.
        inception: Whether the extractor is the genuine Inception network of FID.
        extractor: Its name, for the error.

    Raises:
        ValueError: Saying what the score is called there.
    """
    asks_for_inception(names)
    same = {"fid": "fd", "is": "cls_score", "kid": "kd", "fid_class": "fd_class"}
    instead = {**same, **{other: name for name, other in same.items()}}
    for name in names:
        space = SCORES[name].space
        if space != "any" and (space == "inception") != inception:
            raise ValueError(
                f"{name} is not what it is called with the features of {extractor}: ask for "
                f"{instead[name]}. Only Inception with its published weights gives fid, is, kid."
            )


def check_counts(
    names: Sequence[str], real: FeatureSet, num_generated: int, labels: Tensor | None
) -> None:
    """Refuse what cannot be computed, before anything is trained.

    Args:
        names: The scores.
        real: The real images.
        num_generated: Generated images.
        labels: Theirs; None if they have none.

    Raises:
        ValueError: Saying what a score lacks.
    """
    num_features = real.features.shape[1]
    num_real = real.gaussian.num
    for name in names:
        score = SCORES[name]
        if "logits" in score.needs and real.logits is None:
            raise ValueError(f"{name} needs an extractor that tells classes; this one has none.")
        least = max(score.least, num_features + 1 if "gaussian" in score.needs else 0)
        why = f" (more than its {num_features:,} features)" if least > score.least else ""
        for num, kind in ((num_generated, "generated"), (num_real, "real")):
            if num < least:
                mend = "" if kind == "real" else f"; evaluate with num={least} or more"
                raise ValueError(
                    f"{name} needs at least {least:,} {kind} images{why}, got {num:,}{mend}. "
                    "Fewer would give a number that says nothing."
                )
        if "labels" in score.needs:
            _check_classes(name, real.labels, labels, num_features)


def _check_classes(name: str, real: Tensor | None, fake: Tensor | None, least: int) -> None:
    if real is None or fake is None:
        whose = "the data has none" if real is None else "the generator takes none"
        raise ValueError(f"{name} needs labels, and {whose}.")
    for label in sorted(set(real.tolist())):
        for labels, kind in ((real, "real"), (fake, "generated")):
            num = int(torch.count_nonzero(labels == label))
            if num <= least:
                raise ValueError(
                    f"{name} needs more than {least:,} {kind} images of each class (as many as "
                    f"features), got {num:,} of class {label}."
                )
