"""Likelihoods: what the outputs of a decoder mean.

A decoder returns one number for each pixel and channel, without activation. A likelihood turns
them into a distribution of images. Two of its figures matter:

- ``log_prob`` is what training maximises. Of the normal families it is a density over [-1, 1].
- ``log_mass`` is the probability of the discrete image itself, one of 256 levels a pixel. It is
  what models are compared by, whatever their family: it sums to 1 over all images.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from imgsynth.describe import Described
from imgsynth.losses import (
    bernoulli_log_prob,
    discretised_logistic_log_mass,
    discretised_normal_log_mass,
    normal_log_prob,
)
from imgsynth.losses.likelihood import check_alike
from imgsynth.ranks import mean_over_ranks


class Likelihood(Described, nn.Module):
    """Base of the likelihoods.

    Attributes:
        levels: Values a pixel of the images can take.
    """

    levels: int = 256

    def log_prob(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Return what training maximises.

        Args:
            images: ``(B, C, H, W)`` in [-1, 1].
            outputs: Of a decoder, of the same shape.

        Returns:
            ``(B,)`` in nats an image.
        """
        raise TypeError(f"{type(self).__name__} must define log_prob(images, outputs).")

    def log_mass(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Return the log probability ``(B,)`` of discrete images, in nats an image."""
        raise TypeError(f"{type(self).__name__} must define log_mass(images, outputs).")

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the expected images ``(B, C, H, W)`` in [-1, 1]."""
        return outputs.clamp(-1, 1)

    def sample(self, outputs: Tensor) -> Tensor:
        """Draw images ``(B, C, H, W)`` in [-1, 1] from torch's default generator."""
        raise TypeError(f"{type(self).__name__} must define sample(outputs).")


def off_levels(images: Tensor, levels: int) -> Tensor:
    """Count the values of images that are on none of ``levels`` even steps from -1 to 1.

    Only images on them have a probability; see ``Likelihood.log_mass``.

    Example:
        >>> off_levels(torch.tensor([-1.0, 0.0, 1.0]), levels=2)
        tensor(1)
    """
    steps = (images.double() if images.device.type != "mps" else images.float()) + 1
    steps = steps * ((levels - 1) / 2)
    return ((steps - steps.round()).abs() > 1e-3 + 2e-7 * levels).sum()


class Bernoulli(Likelihood):
    """Binary images: outputs are logits of the probability that a pixel is 1 and not -1.

    For gray images it is a cross-entropy, often used and good to look at, but no likelihood: they
    have no bits per dimension. ``data.binarise`` draws binary images.

    Source:
        Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.1.

    Example:
        >>> Bernoulli().mean(torch.zeros(1, 1, 1, 2))
        tensor([[[[0., 0.]]]])
    """

    levels = 2

    def log_prob(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Return the log probability ``(B,)`` of binary images, see :class:`Likelihood`."""
        return bernoulli_log_prob(images, outputs)

    def log_mass(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Return the same."""
        return self.log_prob(images, outputs)

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the expected images: ``2 sigmoid(outputs) - 1``."""
        return torch.tanh(0.5 * outputs)

    def sample(self, outputs: Tensor) -> Tensor:
        """Draw binary images."""
        drawn = torch.rand(outputs.shape, device=outputs.device)
        return torch.where(drawn < torch.sigmoid(outputs), 1.0, -1.0)


class _Normal(Likelihood):
    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}.")
        self.levels = levels

    @property
    def logvar(self) -> Tensor:
        """The logarithm of the variance."""
        raise NotImplementedError

    @property
    def sigma(self) -> Tensor:
        """The standard deviation of a pixel, in units of an intensity from -1 to 1."""
        return (0.5 * self.logvar).exp()

    def log_prob(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Return the log density ``(B,)``, see :class:`Likelihood`."""
        return normal_log_prob(images, outputs, self.logvar)

    def log_mass(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Return the log probability ``(B,)`` of discrete images, see :class:`Likelihood`."""
        return discretised_normal_log_mass(images, outputs, self.logvar, self.levels)

    def sample(self, outputs: Tensor) -> Tensor:
        """Draw images."""
        noise = torch.randn(outputs.shape, device=outputs.device, dtype=outputs.dtype)
        return (outputs + self.sigma * noise).clamp(-1, 1)


class Gaussian(_Normal):
    """A normal distribution around the outputs with a fixed standard deviation.

    Args:
        sigma: The standard deviation, in units of an intensity from -1 to 1. It decides how much
            a latent may cost: with 1, which mean squared errors imply, the likelihood is so vague
            that few latents are worth it.
        levels: Values a pixel can take, for :meth:`log_mass`.

    Raises:
        ValueError: If ``sigma`` is not above 0, or ``levels`` is below 2.

    Source:
        Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.2.

    Example:
        >>> zeros = torch.zeros(1, 1, 2, 2)
        >>> Gaussian(sigma=1.0).log_prob(zeros, zeros)
        tensor([-3.6758])
    """

    def __init__(self, sigma: float = 1.0, levels: int = 256) -> None:
        super().__init__(levels)
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma must be above 0, got {sigma}.")
        self.register_buffer("_logvar", torch.tensor(2 * math.log(sigma)), persistent=False)

    @property
    def logvar(self) -> Tensor:
        """The logarithm of the variance."""
        return self._logvar  # type: ignore[return-value]


class LearnedGaussian(_Normal):
    """A normal distribution around the outputs with one learned standard deviation.

    Args:
        sigma: The standard deviation at the start.
        levels: Values a pixel can take, for :meth:`log_mass`.

    Raises:
        ValueError: If ``sigma`` is not above 0, or ``levels`` is below 2.

    Source:
        Rybkin et al. 2021, "Simple and Effective VAE Training with Calibrated Decoders", section
        3 (a variance shared by all pixels).

    Example:
        >>> LearnedGaussian(sigma=0.5).sigma.item()
        0.5
    """

    def __init__(self, sigma: float = 1.0, levels: int = 256) -> None:
        super().__init__(levels)
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma must be above 0, got {sigma}.")
        self._logvar = nn.Parameter(torch.tensor(2 * math.log(sigma)))

    @property
    def logvar(self) -> Tensor:
        """The logarithm of the variance."""
        return self._logvar


class OptimalGaussian(_Normal):
    """A normal distribution around the outputs, at each step with the best standard deviation.

    In training the variance is the mean squared error of the batch (over all devices), which
    maximises its likelihood at one latent an image: for the ELBO, not for an importance-weighted
    bound. In evaluation, as a likelihood must not depend on the image that is scored, it is the
    average of recent batches.

    Args:
        momentum: Share of the newest batch in that average.
        levels: Values a pixel can take, for :meth:`log_mass`.

    Raises:
        ValueError: If ``momentum`` is not in (0, 1], or ``levels`` is below 2.

    Source:
        Rybkin et al. 2021, "Simple and Effective VAE Training with Calibrated Decoders", eq. 5.

    Example:
        >>> likelihood = OptimalGaussian()
        >>> _ = likelihood.log_prob(torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5))
        >>> likelihood.sigma.item()
        0.5
    """

    variance: Tensor
    _weight: Tensor

    def __init__(self, momentum: float = 0.01, levels: int = 256) -> None:
        super().__init__(levels)
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be above 0 and at most 1, got {momentum}.")
        self.momentum = momentum
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("_weight", torch.zeros(()))  # of the batches seen, below 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "OptimalGaussian":
        """Stay float32 where the rest becomes half: steps of 1 % are lost in bfloat16."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.variance, self._weight = self.variance.float(), self._weight.float()
        return self

    @property
    def logvar(self) -> Tensor:
        """The logarithm of the variance."""
        return self.variance.log()

    def log_prob(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Return the log density ``(B,)``; in training, learn the variance."""
        if not self.training:
            return super().log_prob(images, outputs)
        check_alike(images, outputs)
        with torch.no_grad():
            error = (images.float() - outputs.float()).square().mean()
            # no error at all would be a density without bound: half a level is as exact as it gets
            variance = mean_over_ranks(error).clamp_min((1 / (self.levels - 1)) ** 2)
            # a batch that overflows must not spoil the average for good
            lasting = torch.where(variance.isfinite(), variance, self.variance)
            self._weight.lerp_(torch.ones_like(self._weight), self.momentum)
            self.variance.lerp_(lasting, self.momentum / self._weight)
        return normal_log_prob(images, outputs, variance.log())


class DiscretisedLogistic(Likelihood):
    """A logistic distribution around the outputs, its mass shared out among the levels.

    Training maximises the probability of the discrete image itself. The scale is learned, one for
    all pixels.

    Args:
        scale: The scale s at the start; the standard deviation is ``s * pi / sqrt(3)``.
        levels: Values a pixel can take.

    Raises:
        ValueError: If ``scale`` is not above 0, or ``levels`` is below 2.

    Source:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
        section 5.2.

    Example:
        >>> zeros = torch.zeros(1, 1, 1, 1)
        >>> DiscretisedLogistic(scale=1e-6).log_mass(zeros, zeros).item()
        0.0
    """

    def __init__(self, scale: float = 0.1, levels: int = 256) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be above 0, got {scale}.")
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}.")
        self.levels = levels
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def log_prob(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Return the log probability ``(B,)`` of discrete images, see :class:`Likelihood`."""
        return discretised_logistic_log_mass(images, outputs, self.log_scale, self.levels)

    def log_mass(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Return the same."""
        return self.log_prob(images, outputs)

    def sample(self, outputs: Tensor) -> Tensor:
        """Draw images."""
        uniform = torch.rand(outputs.shape, device=outputs.device).clamp(1e-6, 1 - 1e-6)
        return (outputs + self.log_scale.exp() * torch.logit(uniform)).clamp(-1, 1)
