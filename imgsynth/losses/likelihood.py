"""Log-likelihoods of images, each the sum over the pixels and channels of an image, in nats.

Densities are over intensities in [-1, 1]; masses are probabilities of one of ``levels`` evenly
spaced values from -1 to 1, so that they sum to 1 over the levels, and those of different families
may be compared. All compute in float32 (or float64), also when their arguments come in half
precision.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def check_alike(images: Tensor, outputs: Tensor) -> None:
    """Check that there is an output for each pixel and channel.

    Raises:
        ValueError: If the shapes differ; broadcasting would give figures that look plausible.
    """
    if images.shape != outputs.shape:
        raise ValueError(
            f"A likelihood takes a number for each pixel and channel: images have the shape "
            f"{tuple(images.shape)}, the decoder's outputs {tuple(outputs.shape)}."
        )


def _wide(images: Tensor, outputs: Tensor, *further: Tensor) -> tuple[Tensor, ...]:
    check_alike(images, outputs)
    tensors = (images, outputs, *further)
    return tuple(t.float() if t.dtype.itemsize < 4 else t for t in tensors)


def bernoulli_log_prob(images: Tensor, logits: Tensor) -> Tensor:
    """Log probability of binary images, whose pixels are -1 or 1.

    For values between it is the negative cross-entropy with the probability ``(x + 1) / 2``: a
    bound for images drawn with that probability, but no likelihood of the gray values themselves.

    Args:
        images: ``(B, ...)`` in [-1, 1].
        logits: Of the same shape; their sigmoid is the probability of 1.

    Returns:
        ``(B,)`` in nats, at most 0 for images in [-1, 1].

    Source:
        Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.1.

    Example:
        >>> bernoulli_log_prob(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
        tensor([-2.7726])
    """
    images, logits = _wide(images, logits)
    entropy = F.binary_cross_entropy_with_logits(logits, 0.5 * (images + 1), reduction="none")
    return -entropy.flatten(1).sum(1)


def normal_log_prob(images: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Log density of a normal distribution with independent pixels.

    Args:
        images: ``(B, ...)`` in [-1, 1].
        mean: Of the same shape.
        logvar: Logarithm of the variance, of a shape that broadcasts to that of the images.

    Returns:
        ``(B,)`` in nats; it has no upper bound, as it is a density.

    Source:
        Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.2.

    Example:
        >>> zeros = torch.zeros(1, 1, 2, 2)
        >>> normal_log_prob(zeros, zeros, torch.tensor(0.0))
        tensor([-3.6758])
    """
    images, mean, logvar = _wide(images, mean, logvar)
    squares = (images - mean).square() * (-logvar).exp()
    terms = squares + logvar + math.log(2 * math.pi)
    return -0.5 * terms.flatten(1).sum(1)


def _edges(images: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the borders of each pixel's level, and whether it is the lowest or the highest."""
    half = 1 / (levels - 1)
    return images - half, images + half, images < -1 + half, images > 1 - half


def discretised_normal_log_mass(
    images: Tensor, mean: Tensor, logvar: Tensor, levels: int = 256
) -> Tensor:
    """Log probability of discrete images, each level having the mass of a normal around it.

    The lowest level has all mass below it, too, and the highest all above.

    Args:
        images: ``(B, ...)``, values on ``levels`` even steps from -1 to 1.
        mean: Of the same shape.
        logvar: Logarithm of the variance, of a shape that broadcasts to that of the images.
        levels: How many values a pixel can take.

    Returns:
        ``(B,)`` in nats, at most 0.

    Source:
        Ho et al. 2020, "Denoising Diffusion Probabilistic Models", eq. 13.

    Example:
        >>> x = torch.linspace(-1, 1, 256).view(256, 1, 1, 1)
        >>> masses = discretised_normal_log_mass(x, torch.zeros_like(x), torch.tensor(0.0))
        >>> round(masses.exp().sum().item(), 5)
        1.0
    """
    images, mean, logvar = _wide(images, mean, logvar)
    low, high, lowest, highest = _edges(images, levels)
    precision = (-0.5 * logvar).exp()
    a, b = (low - mean) * precision, (high - mean) * precision
    # On the left of the mean both tails are small and exact; the right is its mirror image.
    mirrored = a + b > 0
    lower, upper = torch.where(mirrored, -b, a), torch.where(mirrored, -a, b)
    log_lower, log_upper = (torch.special.log_ndtr(t) for t in (lower, upper))
    inner = log_upper + _log1mexp(log_upper - log_lower)
    log_mass = torch.where(lowest, torch.special.log_ndtr(b), inner)
    log_mass = torch.where(highest, torch.special.log_ndtr(-a), log_mass)
    return log_mass.flatten(1).sum(1)


def _log1mexp(x: Tensor) -> Tensor:
    """Return ``log(1 - exp(-x))`` for x > 0."""
    x = x.clamp_min(torch.finfo(x.dtype).tiny)
    far = torch.log1p(-torch.exp(-x.clamp_min(0.5)))  # clamped: no infinite slope where unused
    return torch.where(x < math.log(2), (-torch.expm1(-x)).log(), far)


def discretised_logistic_log_mass(
    images: Tensor, mean: Tensor, log_scale: Tensor, levels: int = 256
) -> Tensor:
    """Log probability of discrete images, each level having the mass of a logistic around it.

    The lowest level has all mass below it, too, and the highest all above.

    Args:
        images: ``(B, ...)``, values on ``levels`` even steps from -1 to 1.
        mean: Of the same shape.
        log_scale: Logarithm of the scale s (the standard deviation is ``s * pi / sqrt(3)``), of a
            shape that broadcasts to that of the images.
        levels: How many values a pixel can take.

    Returns:
        ``(B,)`` in nats, at most 0.

    Source:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
        section 5.2; Salimans et al. 2017, "PixelCNN++", eq. 2 (with one component).

    Example:
        >>> x = torch.linspace(-1, 1, 256).view(256, 1, 1, 1)
        >>> masses = discretised_logistic_log_mass(x, torch.zeros_like(x), torch.tensor(-3.0))
        >>> round(masses.exp().sum().item(), 5)
        1.0
    """
    images, mean, log_scale = _wide(images, mean, log_scale)
    low, high, lowest, highest = _edges(images, levels)
    precision = (-log_scale).exp()
    a, b = (low - mean) * precision, (high - mean) * precision
    # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), without cancellation
    inner = F.logsigmoid(b) + F.logsigmoid(-a) + _log1mexp(b - a)
    log_mass = torch.where(lowest, F.logsigmoid(b), inner)
    log_mass = torch.where(highest, F.logsigmoid(-a), log_mass)
    return log_mass.flatten(1).sum(1)


def importance_weighted(log_weights: Tensor) -> Tensor:
    """Return the bound ``log (1/K) sum_k w_k`` on the log-likelihood, per image.

    Args:
        log_weights: ``(K, B)``, the logarithms of ``p(x, z_k) / q(z_k | x)`` with z_k from q.

    Returns:
        ``(B,)`` in nats. Its expectation rises with K, from the ELBO at K = 1 towards log p(x).

    Source:
        Burda et al. 2016, "Importance Weighted Autoencoders", eq. 8.

    Example:
        >>> importance_weighted(torch.tensor([[0.0], [0.0]]))
        tensor([0.])
    """
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def bits_per_dimension(log_mass: Tensor, num_dimensions: int) -> Tensor:
    """Turn log probabilities of images into bits per dimension: lower is better.

    The one definition in this package: ``-log2 P(x) / D``. It takes probabilities of discrete
    images (masses), never densities: those depend on the unit of intensity and have no bound.

    Args:
        log_mass: Log probabilities in nats, or bounds on them.
        num_dimensions: D, the channels times the pixels of an image.

    Raises:
        ValueError: If ``num_dimensions`` is below 1.

    Source:
        Theis et al. 2016, "A Note on the Evaluation of Generative Models", section 3.1.

    Example:
        >>> bits_per_dimension(torch.tensor([-64 * math.log(256)]), 64)
        tensor([8.])
    """
    if num_dimensions < 1:
        raise ValueError(f"num_dimensions must be at least 1, got {num_dimensions}.")
    return -log_mass / (num_dimensions * math.log(2))
