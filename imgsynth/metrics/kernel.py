"""The kernel distance of two sets of features: KID, where they are Inception's."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imgsynth.metrics.base import SetMetric, check_sets, in_order


def kernel_distance(
    real: Tensor,
    fake: Tensor,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """Squared maximum mean discrepancy with a cubic kernel, unbiased, over random subsets.

    The kernel is (x . y / d + 1)^3. The mean does not depend on the number of images, and may
    fall below zero; the standard deviation is that of the subsets (divided by their number).

    Which rows a subset has follows from the seed and the order of the rows, by the draws of
    torch-fidelity (there the first input is ``fake``), so that its values are met.

    Args:
        real: Features ``(M, d)``.
        fake: Features ``(N, d)``.
        subsets: How often rows are drawn.
        subset_size: Rows drawn from each set, without replacement.
        seed: Chooses them.

    Returns:
        Mean and standard deviation.

    Raises:
        ValueError: If a set has fewer images than a subset, or the features do not fit.

    Source:
        Binkowski et al. 2018, "Demystifying MMD GANs", section 4 and eq. 4.

    Example:
        >>> x = torch.linspace(-1, 1, 10)[:, None]
        >>> mean, std = kernel_distance(x, x + 3, subsets=2, subset_size=10)
        >>> f"{mean:.3f} {std:.3f}"
        '1169.215 0.000'
    """
    real, fake = check_sets(real, fake)
    if subsets < 1 or subset_size < 2:
        raise ValueError(
            "A kernel distance needs at least 1 subset of at least 2 images, got "
            f"subsets={subsets}, subset_size={subset_size}."
        )
    for name, features in {"fake": fake, "real": real}.items():
        if len(features) < subset_size:
            raise ValueError(
                f"Kernel distance: subsets of {subset_size} images cannot be drawn from "
                f"{len(features)} {name} ones; use more images, or a smaller subset_size (and the "
                "same in every score that it is compared with)."
            )
    random = np.random.RandomState(seed)
    values = [
        # in this order: the draws follow each other
        _discrepancy(_draw(random, fake, subset_size), _draw(random, real, subset_size))
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def _draw(random: np.random.RandomState, features: Tensor, num: int) -> Tensor:
    chosen = random.choice(len(features), num, replace=False)
    return features[torch.from_numpy(chosen).to(features.device)].double()


def _discrepancy(x: Tensor, y: Tensor) -> float:
    num = len(x)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within = xx.sum() - xx.trace() + yy.sum() - yy.trace()
    return float(within / (num * (num - 1)) - 2 * xy.mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


class KernelDistance(SetMetric):
    """Kernel distance of generated to real images; see :func:`kernel_distance`.

    The subsets are drawn from the rows ordered by their values, so that batches, ranks and the
    order of arrival change nothing.

    Args:
        extractor: See :class:`FeatureMetric`.
        subsets: How often rows are drawn.
        subset_size: Rows drawn from each set.
        seed: Chooses them.
        real: See :class:`SetMetric`.
        reset_real: See :class:`FeatureMetric`.
        **kwargs: Those of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = KernelDistance(subsets=2, subset_size=10)
        >>> metric.update(torch.linspace(-1, 1, 10)[:, None], real=True)
        >>> metric.update(torch.linspace(2, 4, 10)[:, None], real=False)
        >>> mean, std = metric.compute()
        >>> round(mean.item(), 3)
        1169.215
    """

    higher_is_better = False

    def __init__(
        self,
        extractor: nn.Module | None = None,
        *,
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 2020,
        real: Tensor | None = None,
        reset_real: bool = True,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(extractor, real=real, reset_real=reset_real, **kwargs)
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed

    def _score(self) -> tuple[Tensor, Tensor]:
        real, fake = (in_order(rows) for rows in self._sets())
        mean, std = kernel_distance(real, fake, self.subsets, self.subset_size, self.seed)
        options: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        return torch.tensor(mean, **options), torch.tensor(std, **options)
