"""Optimiser factories and learning-rate schedules.

Both are frozen dataclasses: plain instances serve as defaults, one flag overrides one value
(``--model.generator_optimizer.lr 1e-4``), a class path swaps the class, and a checkpoint holds
them as plain data. Schedules are functions of the images seen: a resumed run, or one on another
number of devices, computes the same learning rate.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import nn

from imgsynth.types import Count, parse_count


def _check(name: str, value: float, *, low: float = 0.0, high: float = math.inf) -> None:
    if not (math.isfinite(value) and low <= value < high):
        bound = f"at least {low:g}" + (f" and below {high:g}" if high < math.inf else "")
        raise ValueError(f"Optimiser: {name} must be {bound}, got {value}.")


def _make_plain(factory: "Optimizer | Schedule") -> None:
    """Turn NumPy's scalars into numbers: a checkpoint with them could not be read again."""
    for field in fields(factory):
        value = getattr(factory, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(factory, field.name, value.item())


@dataclass(frozen=True)
class Optimizer:
    """Base of the factories: called with parameters, it makes a ``torch.optim`` optimiser.

    For an optimiser of your own, write a frozen dataclass that overrides ``__call__``.

    Args:
        lr: Learning rate, before any schedule.
        weight_decay: Factor of the L2 penalty (:class:`AdamW`: of the decoupled decay).
    """

    lr: float = 2e-4
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that no optimiser accepts."""
        _make_plain(self)
        _check("lr", self.lr)
        _check("weight_decay", self.weight_decay)

    def __call__(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser for ``params``."""
        raise TypeError(f"{type(self).__name__} is a base class; use Adam, AdamW, SGD or RMSprop.")


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam; the defaults are those of DCGAN.

    Args:
        lr: Learning rate.
        weight_decay: Factor of the L2 penalty.
        beta1: Decay of the mean of the gradients.
        beta2: Decay of the mean of their squares.
        eps: Added to the denominator.
        fused: Update in one kernel, which rounds otherwise: 0.3 of the time of the update on a
            CPU, a tenth less for a whole step of dense networks. Not with clipping in 16-bit float.

    Source:
        Kingma & Ba 2015; Radford et al. 2016 (lr 2e-4, beta1 0.5).

    Example:
        >>> Adam(lr=1e-3)([nn.Parameter(torch.zeros(1))]).param_groups[0]["betas"]
        (0.5, 0.999)
    """

    beta1: float = 0.5
    beta2: float = 0.999
    eps: float = 1e-8
    fused: bool = False

    def __post_init__(self) -> None:
        """Refuse values that the optimiser does not accept."""
        super().__post_init__()
        _check("beta1", self.beta1, high=1.0)
        _check("beta2", self.beta2, high=1.0)
        _check("eps", self.eps)

    def __call__(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser for ``params``."""
        return torch.optim.Adam(
            params,
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=self.fused or None,
        )


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay.

    Args:
        lr: Learning rate.
        weight_decay: Each step shrinks the weights by ``lr * weight_decay``.
        beta1: Decay of the mean of the gradients.
        beta2: Decay of the mean of their squares.
        eps: Added to the denominator.
        fused: Update in one kernel, which rounds otherwise: 0.3 of the time of the update on a
            CPU, a tenth less for a whole step of dense networks. Not with clipping in 16-bit float.

    Source:
        Loshchilov & Hutter 2019.
    """

    weight_decay: float = 1e-2
    beta1: float = 0.9

    def __call__(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser for ``params``."""
        return torch.optim.AdamW(
            params,
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=self.fused or None,
        )


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent.

    Args:
        lr: Learning rate.
        weight_decay: Factor of the L2 penalty.
        momentum: Decay of the velocity; 0 is plain descent.
        nesterov: Whether to look ahead along the velocity; needs ``momentum``.
    """

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Refuse values that the optimiser does not accept."""
        super().__post_init__()
        _check("momentum", self.momentum)
        if self.nesterov and not self.momentum:
            raise ValueError("Optimiser: SGD(nesterov=True) needs a momentum above 0.")

    def __call__(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser for ``params``."""
        return torch.optim.SGD(
            params,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop, the optimiser of the original WGAN (lr 5e-5).

    Args:
        lr: Learning rate.
        weight_decay: Factor of the L2 penalty.
        alpha: Decay of the mean of the squared gradients.
        eps: Added to the denominator.
        momentum: Decay of the velocity.
    """

    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that the optimiser does not accept."""
        super().__post_init__()
        _check("alpha", self.alpha, high=1.0)
        _check("eps", self.eps)
        _check("momentum", self.momentum)

    def __call__(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser for ``params``."""
        return torch.optim.RMSprop(
            params,
            lr=self.lr,
            alpha=self.alpha,
            eps=self.eps,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


@dataclass(frozen=True)
class Schedule:
    """The learning rate's factor as a function of the images seen; this one stays at 1.

    Args:
        warmup: Images over which the factor rises linearly from 0.

    Example:
        >>> Schedule(warmup="1k").factor(250, None)
        0.25
    """

    warmup: Count = 0

    def __post_init__(self) -> None:
        """Refuse counts that are none."""
        _make_plain(self)
        parse_count(self.warmup, "warmup")

    def factor(self, images: int, total: int | None) -> float:
        """Return the factor after ``images`` of a run of ``total`` images (None: unknown)."""
        warmup = parse_count(self.warmup)
        return (
            min(1.0, images / warmup) * self._decay(images, total)
            if warmup
            else self._decay(images, total)
        )

    def _decay(self, images: int, total: int | None) -> float:
        return 1.0


@dataclass(frozen=True)
class LinearDecay(Schedule):
    """Constant until ``start``, then linear down to ``final`` at ``end``.

    Args:
        warmup: Images over which the factor rises linearly from 0.
        start: Images after which the decay starts.
        end: Images at which it ends; None is the length of the run.
        final: The factor from ``end`` on.

    Source:
        The schedule of CycleGAN (Zhu et al. 2017) with ``start`` at half the run.

    Example:
        >>> LinearDecay(start=100, end=200).factor(150, None)
        0.5
    """

    start: Count = 0
    end: Count | None = None
    final: float = 0.0

    def __post_init__(self) -> None:
        """Refuse counts that are none, and an end before the start."""
        super().__post_init__()
        start = parse_count(self.start, "start")
        if self.end is not None and parse_count(self.end, "end") <= start:
            raise ValueError(f"Schedule: end must be above start ({self.start}), got {self.end}.")
        _check("final", self.final)

    def _progress(self, images: int, total: int | None) -> float:
        start = parse_count(self.start)
        end = parse_count(self.end) if self.end is not None else total
        if end is None:
            raise ValueError(
                f"{type(self).__name__} ends with the run, but the run has no length in images; "
                "give end=..., or the run a length (--images, or Trainer(max_steps=...))."
            )
        return min(1.0, max(0.0, (images - start) / max(1, end - start)))

    def _decay(self, images: int, total: int | None) -> float:
        return 1.0 + (self.final - 1.0) * self._progress(images, total)


@dataclass(frozen=True)
class CosineDecay(LinearDecay):
    """Constant until ``start``, then half a cosine down to ``final`` at ``end``.

    Args:
        warmup: Images over which the factor rises linearly from 0.
        start: Images after which the decay starts.
        end: Images at which it ends; None is the length of the run.
        final: The factor from ``end`` on.

    Source:
        Loshchilov & Hutter 2017, "SGDR", eq. 5, one period.

    Example:
        >>> round(CosineDecay(end=100).factor(50, None), 6)
        0.5
    """

    def _decay(self, images: int, total: int | None) -> float:
        cosine = math.cos(math.pi * self._progress(images, total))
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + cosine)
