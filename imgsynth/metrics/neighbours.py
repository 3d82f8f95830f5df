"""Precision, recall, density and coverage: whose neighbourhoods hold whom."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from imgsynth.metrics.base import SetMetric, check_features, check_sets

_TILE = 2048
"""Images on a side of a tile of distances: 32 MiB in float64."""

_SLACK = 1e-12
"""More than rounding does to a squared distance, as a share of the two squared norms.

A copy of an image lies exactly on the edge of its neighbours' balls: it must count.
"""


def radii(features: Tensor, k: int) -> Tensor:
    """Distance of each image to its k-th nearest other image of the set.

    In float64, tile by tile: besides the features it needs a constant amount of memory.

    Args:
        features: ``(N, d)``.
        k: Which neighbour, from 1.

    Returns:
        ``(N,)`` float64. Keep those of a reference: they do not change.

    Raises:
        ValueError: If there are fewer than k + 1 images, or the features do not fit.

    Example:
        >>> radii(torch.tensor([[0.0], [1.0], [3.0]]), k=1).tolist()
        [1.0, 1.0, 2.0]
    """
    features = check_features(features)
    if k < 1 or len(features) <= k:
        raise ValueError(
            f"The neighbour number {k} needs k of at least 1 and more than k images, got "
            f"{len(features)} images."
        )
    options: dict[str, Any] = {"dtype": torch.float64, "device": features.device}
    nearest = torch.full((len(features), k + 1), torch.inf, **options)
    for rows, _, squared in _tiles(features, features):
        best = squared.clamp(min=0).topk(min(k + 1, squared.shape[1]), largest=False).values
        candidates = torch.cat([nearest[rows], best], 1)
        nearest[rows] = candidates.topk(k + 1, largest=False).values
    return nearest.amax(1).sqrt()  # with itself, at distance 0, k + 1 are nearest


def precision_recall(
    real: Tensor, fake: Tensor, k: int = 3, real_radii: Tensor | None = None
) -> tuple[float, float]:
    """Share of fakes within the real manifold, and of real images within the fakes'.

    The manifold of a set is the union of closed balls, one around each image, as wide as the
    distance to its k-th nearest neighbour in the set. Both in [0, 1]. Precision alone misleads:
    blurred images and images of one easy class raise it. Both depend on the numbers of images:
    compare only scores of equally many.

    Args:
        real: Features ``(M, d)``.
        fake: Features ``(N, d)``.
        k: Which neighbour gives the radius.
        real_radii: ``radii(real, k)``, if it is at hand.

    Returns:
        Precision and recall.

    Raises:
        ValueError: If a set has fewer than k + 1 images, or the features do not fit.

    Source:
        Kynkaanniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative
        Models", eq. 1 and 2.

    Example:
        >>> real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> precision_recall(real, torch.tensor([[0.5], [1.5], [9.0]]), k=1)
        (0.6666666666666666, 1.0)
    """
    real, fake = check_sets(real, fake)
    of_real, of_fake = _given(real, real_radii, k), radii(fake, k)
    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, columns, squared in _tiles(real, fake, _SLACK):
        precise[columns] |= (squared <= of_real[rows, None] ** 2).any(0)
        recalled[rows] |= (squared <= of_fake[columns] ** 2).any(1)
    return float(precise.double().mean()), float(recalled.double().mean())


def density_coverage(
    real: Tensor, fake: Tensor, k: int = 5, real_radii: Tensor | None = None
) -> tuple[float, float]:
    """How many real neighbourhoods a fake lies in, and the share of them that hold a fake.

    Density counts the balls around real images (closed, as wide as the distance to their k-th
    nearest real neighbour) that a fake lies in, divided by k: 1 is expected of real images, more
    is possible. Coverage is the share of the balls that have a fake in them, in [0, 1].

    Args:
        real: Features ``(M, d)``.
        fake: Features ``(N, d)``.
        k: Which neighbour gives the radius.
        real_radii: ``radii(real, k)``, if it is at hand.

    Returns:
        Density and coverage.

    Raises:
        ValueError: If there are fewer than k + 1 real images, or no fakes, or the features do
            not fit.

    Source:
        Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", eq. 4
        and 5.

    Example:
        >>> real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> density_coverage(real, torch.tensor([[0.5], [9.0]]), k=1)
        (1.0, 0.5)
    """
    real, fake = check_sets(real, fake)
    if not len(fake):
        raise ValueError("Density and coverage need at least 1 fake image, got none.")
    of_real = _given(real, real_radii, k)
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    held = 0
    for rows, _, squared in _tiles(real, fake, _SLACK):
        inside = squared <= of_real[rows, None] ** 2
        covered[rows] |= inside.any(1)
        held += int(inside.sum())
    return held / (k * len(fake)), float(covered.double().mean())


def _given(real: Tensor, real_radii: Tensor | None, k: int) -> Tensor:
    if real_radii is None:
        return radii(real, k)
    if real_radii.shape != (len(real),):
        raise ValueError(
            f"real_radii: expected one a real image, shape ({len(real)},), got "
            f"{tuple(real_radii.shape)}; it is radii(real, k={k}) of the same images."
        )
    return real_radii.to(real.device).double()


def _tiles(x: Tensor, y: Tensor, slack: float = 0.0) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield squared distances of some of ``x`` to some of ``y``, with where they are.

    About the mean of ``x``: products of features far from zero would lose digits. They may be
    lowered by a slack, a share of the two squared norms.
    """
    centre = x.mean(0, dtype=torch.float64)
    for i in range(0, len(x), _TILE):
        a = x[i : i + _TILE] - centre
        for j in range(0, len(y), _TILE):
            b = y[j : j + _TILE] - centre
            norms = a.square().sum(1)[:, None] + b.square().sum(1)
            squared = torch.addmm(norms, a, b.T, beta=1 - slack, alpha=-2)
            yield slice(i, i + len(a)), slice(j, j + len(b)), squared


class PrecisionRecall(SetMetric):
    """Improved precision and recall of generated images; see :func:`precision_recall`.

    Args:
        extractor: See :class:`FeatureMetric`.
        k: Which neighbour gives the radius.
        real: See :class:`SetMetric`.
        real_radii: ``radii(real, k)``, if it is at hand.
        reset_real: See :class:`FeatureMetric`.
        **kwargs: Those of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = PrecisionRecall(k=1)
        >>> metric.update(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), real=True)
        >>> metric.update(torch.tensor([[0.5], [0.6], [9.0], [9.5]]), real=False)
        >>> precision, recall = metric.compute()
        >>> precision.item(), recall.item()
        (0.5, 0.0)
    """

    higher_is_better = True
    _function = staticmethod(precision_recall)

    def __init__(
        self,
        extractor: nn.Module | None = None,
        *,
        k: int = 3,
        real: Tensor | None = None,
        real_radii: Tensor | None = None,
        reset_real: bool = True,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(extractor, real=real, reset_real=reset_real, **kwargs)
        if real is None and real_radii is not None:
            raise ValueError("real_radii are the radii of `real`, which was not given.")
        self.k, self.real_radii = k, real_radii

    def _score(self) -> tuple[Tensor, Tensor]:
        first, second = self._function(*self._sets(), self.k, self.real_radii)
        options: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        return torch.tensor(first, **options), torch.tensor(second, **options)


class DensityCoverage(PrecisionRecall):
    """Density and coverage of generated images; see :func:`density_coverage`.

    Args:
        extractor: See :class:`FeatureMetric`.
        k: Which neighbour gives the radius.
        real: See :class:`SetMetric`.
        real_radii: ``radii(real, k)``, if it is at hand.
        reset_real: See :class:`FeatureMetric`.
        **kwargs: Those of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = DensityCoverage(k=1)
        >>> metric.update(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), real=True)
        >>> metric.update(torch.tensor([[0.5], [9.0]]), real=False)
        >>> density, coverage = metric.compute()
        >>> density.item(), coverage.item()
        (1.0, 0.5)
    """

    _function = staticmethod(density_coverage)

    def __init__(
        self,
        extractor: nn.Module | None = None,
        *,
        k: int = 5,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(extractor, k=k, **kwargs)
