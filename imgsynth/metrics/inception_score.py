"""The Inception score of generated images, from a classifier's logits."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imgsynth.metrics.base import FeatureMetric, all_rows, append, check_features, in_order


def inception_score(logits: Tensor, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """Exponential of the mean divergence of an image's classes from those of all images.

    exp(E_x KL(p(y|x) || p(y))), from 1 to the number of classes, over shuffled splits of equal
    size (to one image), in float64. Shuffled by torch-fidelity's draw, so that its values are met.

    It is the Inception score where the classifier is the Inception network of its authors. Say
    which one it is otherwise.

    Args:
        logits: ``(N, k)`` of generated images.
        splits: Parts that are scored on their own.
        seed: Chooses who is in which.

    Returns:
        Mean and standard deviation (divided by their number) over the splits.

    Raises:
        ValueError: If there are fewer images than splits, or the logits do not fit.

    Source:
        Salimans et al. 2016, "Improved Techniques for Training GANs", section 4.

    Example:
        >>> mean, std = inception_score(100 * torch.eye(4), splits=1)
        >>> round(mean, 6)
        4.0
    """
    logits = check_features(logits, "logits")
    if splits < 1 or len(logits) < splits:
        raise ValueError(
            f"An Inception score of {splits} splits needs at least {max(splits, 1)} images and 1 "
            f"split, got {len(logits)} images; use more images or fewer splits."
        )
    shuffled = np.random.RandomState(seed).permutation(len(logits))
    logits = logits[torch.from_numpy(shuffled).to(logits.device)].double()
    bounds = [i * len(logits) // splits for i in range(splits + 1)]
    scores = [_score(logits[start:end]) for start, end in pairwise(bounds)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(logits: Tensor) -> float:
    log_p = logits.log_softmax(1)
    # not log(mean(p)): a class nobody has would be log(0)
    log_marginal = log_p.logsumexp(0) - np.log(len(logits))
    divergence = (log_p.exp() * (log_p - log_marginal)).sum(1)
    return float(divergence.mean().exp())


class InceptionScore(FeatureMetric):
    """Inception score of generated images; see :func:`inception_score`.

    Splits are made of the rows ordered by their values and then shuffled, so that batches, ranks
    and the order of arrival change nothing.

    Args:
        extractor: One with logits. None: ``update`` takes logits ``(N, k)``.
        splits: Parts that are scored on their own.
        seed: Chooses who is in which.
        **kwargs: Those of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If the extractor has no logits.

    Example:
        >>> metric = InceptionScore(splits=1)
        >>> metric.update(100 * torch.eye(4))
        >>> mean, std = metric.compute()
        >>> round(mean.item(), 6)
        4.0
    """

    higher_is_better = True
    logits: list[Tensor]

    def __init__(
        self,
        extractor: nn.Module | None = None,
        *,
        splits: int = 10,
        seed: int = 2020,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(extractor, **kwargs)
        if extractor is not None and not getattr(extractor, "num_logits", 1):
            raise ValueError(
                f"An Inception score needs a classifier's logits, which {type(extractor).__name__} "
                "does not have; use an extractor with num_logits above 0."
            )
        self.splits, self.seed = splits, seed
        self.add_state("logits", [], "cat")

    def update(self, inputs: Tensor, real: bool = False) -> None:
        """Add generated images, or their logits. Real ones are passed over: they do not count.

        Args:
            inputs: uint8 ``(N, C, H, W)`` with an extractor, else float ``(N, k)``.
            real: Whether they are real, not generated.

        Raises:
            ValueError: As :meth:`FeatureMetric.update` says.
        """
        if not real:
            super().update(inputs, real)

    def _features(self, inputs: Tensor) -> Tensor:
        if self.extractor is not None:
            _, inputs = self.extractor(inputs)
        return check_features(inputs.to(self.device), "logits")

    def _add(self, features: Tensor, real: bool) -> None:
        del real  # always generated
        append(self.logits, features)

    def _score(self) -> tuple[Tensor, Tensor]:
        logits = in_order(all_rows(self.logits, "fake"))
        mean, std = inception_score(logits, self.splits, self.seed)
        options: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        return torch.tensor(mean, **options), torch.tensor(std, **options)
