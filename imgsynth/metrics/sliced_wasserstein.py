"""The sliced Wasserstein distance of two sets: optimal transport along many directions."""

from typing import Any

import torch
from torch import Tensor, nn

from imgsynth import seeding
from imgsynth.metrics.base import SetMetric, check_sets

_VALUES = 2**24
"""Projected values held at a time: 128 MiB in float64."""


def sliced_wasserstein(
    real: Tensor, fake: Tensor, projections: int = 512, seed: int = 0, p: int = 2
) -> float:
    """p-th root of the mean p-th power of the Wasserstein distance of the projected sets.

    Along random directions, each of length 1 and equally likely. In units of the features: a set
    and its copy moved by v are |v| / sqrt(d) apart for p = 2, as directions become many. Sets of
    different size are compared exactly, by their quantile functions: nothing is thinned out or
    interpolated. Needs no covariance, so few images of many features will do; it suits plain
    pixels too.

    Args:
        real: Features, or flattened images, ``(M, d)``.
        fake: The same, ``(N, d)``.
        projections: Number of directions.
        seed: Chooses them.
        p: 1 or 2.

    Raises:
        ValueError: If a set is empty, ``p`` or ``projections`` is another, or the features do not
            fit.

    Source:
        Bonneel et al. 2015, "Sliced and Radon Wasserstein Barycenters of Measures", definition 1.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [5.0]])
        >>> sliced_wasserstein(x, x + 2, projections=1)
        2.0
    """
    real, fake = check_sets(real, fake)
    if projections < 1 or p not in (1, 2) or not (len(real) and len(fake)):
        raise ValueError(
            "A sliced Wasserstein distance needs p of 1 or 2, at least 1 projection and 1 image a "
            f"set, got p={p}, projections={projections}, {len(real)} real and {len(fake)} fake "
            "images."
        )
    directions = torch.randn(
        projections,
        real.shape[1],
        dtype=torch.float64,
        generator=seeding.generator(seed, "sliced wasserstein"),
    ).to(real.device)
    directions /= torch.linalg.vector_norm(directions, dim=1, keepdim=True)
    widths, of_real, of_fake = _common_steps(len(real), len(fake), real.device)
    total = torch.zeros((), dtype=torch.float64, device=real.device)
    for some in torch.split(directions, max(1, _VALUES // len(widths))):
        gaps = _quantiles(real, some)[:, of_real] - _quantiles(fake, some)[:, of_fake]
        total += (gaps.abs() ** p @ widths).sum()
    return float((total / projections) ** (1 / p))


def _quantiles(features: Tensor, directions: Tensor) -> Tensor:
    """Sorted projections ``(directions, N)``: the steps of the quantile functions."""
    rows = max(1, _VALUES // features.shape[1])
    parts = [directions @ part.double().T for part in torch.split(features, rows)]
    return torch.cat(parts, 1).sort(1).values


def _common_steps(m: int, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Cut [0, 1] where a quantile function of m or of n values steps.

    In whole multiples of 1 / (m n), so that equal places are equal.

    Returns:
        Widths of the pieces, and which of the m and which of the n values each belongs to.
    """
    places = torch.unique(torch.cat([torch.arange(m + 1) * n, torch.arange(1, n) * m])).to(device)
    starts = places[:-1]
    return places.diff().double() / (m * n), starts // n, starts // m


class SlicedWasserstein(SetMetric):
    """Sliced Wasserstein distance of generated to real images; see :func:`sliced_wasserstein`.

    Args:
        extractor: See :class:`FeatureMetric`.
        projections: Number of directions.
        seed: Chooses them.
        p: 1 or 2.
        real: See :class:`SetMetric`.
        reset_real: See :class:`FeatureMetric`.
        **kwargs: Those of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = SlicedWasserstein(projections=1)
        >>> metric.update(torch.tensor([[0.0], [1.0]]), real=True)
        >>> metric.update(torch.tensor([[4.0], [4.0], [5.0], [5.0]]), real=False)
        >>> metric.compute().item()
        4.0
    """

    higher_is_better = False

    def __init__(
        self,
        extractor: nn.Module | None = None,
        *,
        projections: int = 512,
        seed: int = 0,
        p: int = 2,
        real: Tensor | None = None,
        reset_real: bool = True,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(extractor, real=real, reset_real=reset_real, **kwargs)
        self.projections, self.seed, self.p = projections, seed, p

    def _score(self) -> Tensor:
        distance = sliced_wasserstein(*self._sets(), self.projections, self.seed, self.p)
        return torch.tensor(distance, dtype=torch.float64, device=self.device)
