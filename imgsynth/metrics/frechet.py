"""The Frechet distance of two sets of features, taken as Gaussians."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imgsynth.metrics.base import FeatureMetric, SetMetric, all_rows, check_features

_EPSILON = torch.finfo(torch.float64).eps
_PARTS = ("num", "mean", "scatter")


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of features.

    Attributes:
        mean: ``(d,)`` float64.
        covariance: ``(d, d)`` float64, the sum over the images divided by ``num - 1``.
        num: The images they are of.
    """

    mean: Tensor
    covariance: Tensor
    num: int


class Moments:
    """Mean and covariance of features that arrive in batches.

    In float64 and about the mean so far: large means cost no accuracy. Needs the memory of one
    ``(d, d)`` matrix, however many images.

    Source:
        Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", eq. 2.1.

    Example:
        >>> moments = Moments()
        >>> moments.add(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> moments.add(torch.tensor([[4.0, 1.0]]))
        >>> moments.gaussian().covariance.tolist()
        [[4.0, 0.0], [0.0, 0.0]]
    """

    def __init__(self) -> None:
        self.num = 0
        self.mean = torch.empty(0, dtype=torch.float64)
        self.scatter = torch.empty(0, 0, dtype=torch.float64)

    @classmethod
    def of(cls, num: int, mean: Tensor, scatter: Tensor) -> "Moments":
        """Take up moments: ``scatter`` is the covariance times ``num - 1``; it may be changed."""
        moments = cls()
        moments.num, moments.mean, moments.scatter = num, mean, scatter
        return moments

    def add(self, features: Tensor) -> None:
        """Add features ``(N, d)``.

        Raises:
            ValueError: If they have another form, are not finite, or are of another width than
                those before.
        """
        features = check_features(features).double()
        if not len(features):
            return
        mean = features.mean(0)
        centred = features - mean
        self.merge(Moments.of(len(features), mean, centred.T @ centred))

    def merge(self, other: "Moments") -> None:
        """Add the features of another.

        Raises:
            ValueError: If they are of another width.
        """
        if not other.num:
            return
        if not self.num:
            self.num, self.mean, self.scatter = other.num, other.mean, other.scatter.clone()
            return
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"features: expected {len(self.mean)} an image as before, got "
                f"{len(other.mean)}; all must come from one extractor."
            )
        num = self.num + other.num
        step = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter.addr_(step, step, alpha=self.num * other.num / num)
        self.mean = self.mean + step * (other.num / num)
        self.num = num

    def gaussian(self) -> Gaussian:
        """Return what all features so far amount to.

        Raises:
            ValueError: If there are fewer than 2.
        """
        if self.num < 2:
            raise ValueError(f"A covariance needs at least 2 images, got {self.num}.")
        return Gaussian(self.mean, self.scatter / (self.num - 1), self.num)


def factor(covariance: Tensor) -> Tensor:
    """Return L with L L^T = covariance.

    By Cholesky where the covariance has full rank beyond rounding, else by its eigenvectors,
    those of rounding's size left out. Keep the factor of a reference: it does not change.

    Args:
        covariance: ``(d, d)``, symmetric, positive semidefinite.

    Returns:
        ``(d, r)`` float64, r the rank.

    Example:
        >>> factor(torch.tensor([[4.0, 0.0], [0.0, 0.0]])).abs().tolist()
        [[2.0], [0.0]]
    """
    covariance = covariance.double()
    cholesky = _cholesky(covariance)
    if cholesky is not None:
        return cholesky
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > _tolerance(covariance, values[-1])
    root: Tensor = vectors[:, kept] * values[kept].sqrt()
    return root


def _cholesky(covariance: Tensor) -> Tensor | None:
    """Return the Cholesky factor, or None if rounding alone may have made it exist."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    scale = covariance.diagonal().max()
    sound = not failed and root.diagonal().min().square() > _tolerance(covariance, scale)
    return root if sound else None


def _tolerance(covariance: Tensor, scale: Tensor) -> Tensor:
    return len(covariance) * _EPSILON * scale


def _trace_of_root(covariance: Tensor, root: Tensor) -> Tensor:
    """Trace of the square root of covariance times root root^T."""
    if _cholesky(covariance) is not None:
        product = root.T @ covariance @ root
        roots: Tensor = torch.linalg.eigvalsh(product).clamp(min=0).sqrt()
        return roots.sum()
    # The root of an eigenvalue that is zero but for rounding is not small: 1e-16 becomes 1e-8,
    # for each missing dimension. Singular values of the factors are these roots, unharmed, but
    # take twice as long.
    roots = torch.linalg.svdvals(factor(covariance).T @ root)
    return roots.sum()


def frechet_distance(
    fake: Gaussian,
    real: Gaussian,
    real_factor: Tensor | None = None,
    *,
    allow_few: bool = False,
) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians.

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)), in squared units of the features. The
    last trace is that of the positive semidefinite L^T C1 L with C2 = L L^T: no imaginary parts,
    in about half the time of the eigenvalues of C1 C2.

    The estimate is biased upwards by few images, without a sign of it in the value: compare only
    scores of equally many.

    Args:
        fake: Of the generated images.
        real: Of the real ones.
        real_factor: ``factor(real.covariance)``, if it is at hand.
        allow_few: Accept fewer images than features + 1, where the covariance cannot have full
            rank.

    Raises:
        ValueError: If the widths differ, or there are too few images.

    Source:
        Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium", eq. 6; Dowson and Landau 1982, eq. 4.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> a, b = Gaussian(0 * one, one[None], 9), Gaussian(3 * one, 4 * one[None], 9)
        >>> frechet_distance(a, b)
        10.0
    """
    _check_gaussians(fake, real, allow_few)
    mean, covariance = (t.to(real.mean.device) for t in (fake.mean, fake.covariance))
    root = factor(real.covariance) if real_factor is None else real_factor.to(mean.device).double()
    if len(root) != len(mean):
        raise ValueError(
            f"real_factor: expected {len(mean)} rows, one a feature, got shape "
            f"{tuple(root.shape)}; it is factor(real.covariance)."
        )
    traces = covariance.trace() + real.covariance.trace()
    distance = (mean - real.mean).square().sum() + traces - 2 * _trace_of_root(covariance, root)
    return float(distance)


def _check_gaussians(fake: Gaussian, real: Gaussian, allow_few: bool) -> None:
    width = len(real.mean)
    if len(fake.mean) != width:
        raise ValueError(
            f"Real and fake features must come from one extractor, got {width} and "
            f"{len(fake.mean)} features an image."
        )
    for name, gaussian in {"fake": fake, "real": real}.items():
        if gaussian.num < (2 if allow_few else width + 1):
            raise ValueError(
                f"A Frechet distance of {width} features needs at least {width + 1} images, got "
                f"{gaussian.num} {name} ones; use more images or an extractor of fewer features "
                "(allow_few=True computes it all the same, far too high)."
            )
        if not (gaussian.mean.isfinite().all() and gaussian.covariance.isfinite().all()):
            raise ValueError(f"The {name} features' mean or covariance is not finite.")


class FrechetDistance(FeatureMetric):
    """Frechet distance of generated to real images; see :func:`frechet_distance`.

    It is called FID where the extractor is the Inception network of its authors, else not.

    Args:
        extractor: See :class:`FeatureMetric`.
        real: Mean and covariance of the real images, if they are known beforehand: the same on
            every rank, never reset, and ``update`` takes no others.
        real_factor: ``factor(real.covariance)``, if it is at hand.
        allow_few: Accept fewer images than features + 1.
        reset_real: See :class:`FeatureMetric`.
        **kwargs: Those of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = FrechetDistance()
        >>> metric.update(torch.tensor([[0.0], [1.0], [2.0]]), real=True)
        >>> metric.update(torch.tensor([[3.0], [4.0], [5.0]]), real=False)
        >>> metric.compute()
        tensor(9., dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(
        self,
        extractor: nn.Module | None = None,
        *,
        real: Gaussian | None = None,
        real_factor: Tensor | None = None,
        allow_few: bool = False,
        reset_real: bool = True,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(extractor, reset_real=reset_real, **kwargs)
        self.given, self.real_factor, self.allow_few = real, real_factor, allow_few
        if real is None and real_factor is not None:
            raise ValueError("real_factor is the factor of `real`, which was not given.")
        for side in ("real", "fake"):
            for part in _PARTS:
                self.add_state(f"{side}_{part}", [], "cat")

    def gaussian(self, real: bool) -> Gaussian:
        """Return mean and covariance of this rank's images (in ``compute``: of all ranks')."""
        if real and self.given is not None:
            return self.given
        side = "real" if real else "fake"
        nums, means, scatters = (all_rows(s, side) for s in self._states(side))
        total = Moments()
        for num, mean, scatter in zip(nums.tolist(), means, scatters, strict=True):
            total.merge(Moments.of(num, mean, scatter))
        return total.gaussian()

    def _states(self, side: str) -> list[list[Tensor]]:
        return [getattr(self, f"{side}_{part}") for part in _PARTS]

    def _add(self, features: Tensor, real: bool) -> None:
        if real and self.given is not None:
            raise ValueError("The real images were given to the metric; update() takes no more.")
        states = self._states("real" if real else "fake")
        moments = Moments()
        if states[0]:  # a list of one between updates
            (num,), (mean,), (scatter,) = (state[0] for state in states)
            moments = Moments.of(int(num), mean, scatter)
        moments.add(features)
        num = torch.tensor([moments.num], device=self.device)
        for state, value in zip(
            states, (num, moments.mean[None], moments.scatter[None]), strict=True
        ):
            state[:] = [value]

    def _score(self) -> Tensor:
        fake, real = self.gaussian(real=False), self.gaussian(real=True)
        distance = frechet_distance(fake, real, self.real_factor, allow_few=self.allow_few)
        return torch.tensor(distance, dtype=torch.float64, device=self.device)


class ClassFrechetDistance(SetMetric):
    """Frechet distance of each class's generated images to its real ones, and their mean.

    It keeps all features: a covariance for each of many classes would need more memory.

    Args:
        num_classes: Labels are 0 to ``num_classes - 1``.
        extractor: See :class:`FeatureMetric`.
        allow_few: Accept classes of fewer images than features + 1.
        reset_real: See :class:`FeatureMetric`.
        **kwargs: Those of :class:`torchmetrics.Metric`.

    Source:
        Miyato and Koyama 2018, "cGANs with Projection Discriminator", section 5.1 (intra FID).

    Example:
        >>> metric = ClassFrechetDistance(num_classes=2)
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> real = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
        >>> metric.update(real, real=True, labels=labels)
        >>> metric.update(real + labels[:, None], real=False, labels=labels)
        >>> mean, classes = metric.compute()
        >>> mean.item(), classes.tolist()
        (0.5, [0.0, 1.0])
    """

    higher_is_better = False
    real_labels: list[Tensor]
    fake_labels: list[Tensor]

    def __init__(
        self,
        num_classes: int,
        extractor: nn.Module | None = None,
        *,
        allow_few: bool = False,
        reset_real: bool = True,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(extractor, reset_real=reset_real, **kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
        self.num_classes, self.allow_few = num_classes, allow_few
        self.add_state("real_labels", [], "cat")
        self.add_state("fake_labels", [], "cat")

    def update(self, inputs: Tensor, real: bool, labels: Tensor | None = None) -> None:
        """Add images, or features, with their labels.

        Args:
            inputs: uint8 ``(N, C, H, W)`` with an extractor, else float ``(N, d)``.
            real: Whether they are real, not generated.
            labels: ``(N,)`` int64.

        Raises:
            ValueError: If the labels do not fit, or as :meth:`FeatureMetric.update` says.
        """
        labels = self._checked(labels, len(inputs))
        super().update(inputs, real)
        (self.real_labels if real else self.fake_labels).append(labels)

    def _checked(self, labels: Tensor | None, num: int) -> Tensor:
        if labels is None or labels.shape != (num,) or labels.dtype != torch.int64:
            got = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise ValueError(f"labels must be int64 of shape ({num},), got {got}.")
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(wrong):
            raise ValueError(
                f"labels must be between 0 and {self.num_classes - 1}, got {int(wrong[0])}."
            )
        return labels.to(self.device)

    def _score(self) -> tuple[Tensor, Tensor]:
        real, fake = self._sets()
        of_real = all_rows(self.real_labels, "real")
        of_fake = all_rows(self.fake_labels, "fake")
        distances = []
        for label in range(self.num_classes):
            try:
                sides = (_moments(fake[of_fake == label]), _moments(real[of_real == label]))
                distances.append(frechet_distance(*sides, allow_few=self.allow_few))
            except ValueError as error:
                raise ValueError(f"Class {label}: {error}") from None
        classes = torch.tensor(distances, dtype=torch.float64, device=self.device)
        return classes.mean(), classes


def _moments(features: Tensor) -> Gaussian:
    moments = Moments()
    moments.add(features)
    return moments.gaussian()
