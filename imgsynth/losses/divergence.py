"""Divergences between the normal distributions that encoders and priors state."""

from torch import Tensor


def normal_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """Kullback-Leibler divergence of diagonal normals from the standard normal, per dimension.

    ``KL(N(mu, exp(logvar)) || N(0, 1))``, in nats. Sum over the dimensions for that of a latent.

    Args:
        mu: Means, any shape.
        logvar: Logarithms of the variances, of the same shape.

    Returns:
        Of the same shape, at least 0, in float32 or float64.

    Source:
        Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix B.

    Example:
        >>> import torch
        >>> normal_kl(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.0]))
        tensor([0., 2.])
    """
    if mu.shape != logvar.shape:
        raise ValueError(
            "normal_kl: mu and logvar must have one shape, got "
            f"{tuple(mu.shape)} and {tuple(logvar.shape)}."
        )
    if mu.dtype.itemsize < 4:
        mu, logvar = mu.float(), logvar.float()
    return 0.5 * (mu.square() + logvar.expm1() - logvar)
