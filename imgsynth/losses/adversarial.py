"""Adversarial terms, one function a player and a kind of image.

All take logits of any shape, before any activation: ``(B,)``, or ``(B, 1, H', W')`` of a patch
discriminator. All return the mean over everything as a scalar, to be minimised, in float32 (or
float64) also when the logits come in half precision.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def _widen(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in {torch.float16, torch.bfloat16} else logits


def nonsaturating_d_real(logits: Tensor) -> Tensor:
    """Cross entropy of real images: the mean of ``-log D(x)``, D being the logits' sigmoid.

    Source:
        Goodfellow et al. 2014, "Generative Adversarial Nets", eq. 1, first term.

    Example:
        >>> nonsaturating_d_real(torch.zeros(4))
        tensor(0.6931)
    """
    return F.softplus(-_widen(logits)).mean()


def nonsaturating_d_fake(logits: Tensor) -> Tensor:
    """Cross entropy of generated images: the mean of ``-log(1 - D(G(z)))``.

    Source:
        Goodfellow et al. 2014, "Generative Adversarial Nets", eq. 1, second term.

    Example:
        >>> nonsaturating_d_fake(torch.zeros(4))
        tensor(0.6931)
    """
    return F.softplus(_widen(logits)).mean()


def nonsaturating_g(logits: Tensor) -> Tensor:
    """Cross entropy with swapped labels: the mean of ``-log D(G(z))``.

    Its gradient stays large where the discriminator is sure that the images are generated.

    Source:
        Goodfellow et al. 2014, "Generative Adversarial Nets", section 3, last paragraph.

    Example:
        >>> nonsaturating_g(torch.zeros(4))
        tensor(0.6931)
    """
    return F.softplus(-_widen(logits)).mean()


def minimax_g(logits: Tensor) -> Tensor:
    """The generator's side of the original game: the mean of ``log(1 - D(G(z)))``.

    Its gradient vanishes where the discriminator is sure: ``nonsaturating_g`` is what is used.

    Source:
        Goodfellow et al. 2014, "Generative Adversarial Nets", eq. 1 and algorithm 1.

    Example:
        >>> minimax_g(torch.zeros(4))
        tensor(-0.6931)
    """
    return -F.softplus(_widen(logits)).mean()


def hinge_d_real(logits: Tensor) -> Tensor:
    """Hinge of real images: the mean of ``max(0, 1 - D(x))``.

    Source:
        Miyato et al. 2018, "Spectral Normalization for GANs", eq. 16, first term; Lim & Ye 2017.

    Example:
        >>> hinge_d_real(torch.tensor([-1.0, 3.0]))
        tensor(1.)
    """
    return F.relu(1 - _widen(logits)).mean()


def hinge_d_fake(logits: Tensor) -> Tensor:
    """Hinge of generated images: the mean of ``max(0, 1 + D(G(z)))``.

    Source:
        Miyato et al. 2018, "Spectral Normalization for GANs", eq. 16, second term; Lim & Ye 2017.

    Example:
        >>> hinge_d_fake(torch.tensor([1.0, -3.0]))
        tensor(1.)
    """
    return F.relu(1 + _widen(logits)).mean()


def hinge_g(logits: Tensor) -> Tensor:
    """The generator's side of the hinge game, which has no hinge: the mean of ``-D(G(z))``.

    Source:
        Miyato et al. 2018, "Spectral Normalization for GANs", eq. 17; Lim & Ye 2017.

    Example:
        >>> hinge_g(torch.tensor([1.0, 2.0]))
        tensor(-1.5000)
    """
    return -_widen(logits).mean()


def least_squares_d_real(logits: Tensor, label: float = 1.0) -> Tensor:
    """Half the mean squared distance of real images' logits to ``label``, the paper's b.

    Source:
        Mao et al. 2017, "Least Squares Generative Adversarial Networks", eq. 2 with eq. 9's
        labels, the factor one half included.

    Example:
        >>> least_squares_d_real(torch.tensor([1.0, 3.0]))
        tensor(1.)
    """
    return 0.5 * (_widen(logits) - label).square().mean()


def least_squares_d_fake(logits: Tensor, label: float = 0.0) -> Tensor:
    """Half the mean squared distance of generated images' logits to ``label``, the paper's a.

    Source:
        Mao et al. 2017, "Least Squares Generative Adversarial Networks", eq. 2 with eq. 9's
        labels, the factor one half included.

    Example:
        >>> least_squares_d_fake(torch.tensor([0.0, 2.0]))
        tensor(1.)
    """
    return 0.5 * (_widen(logits) - label).square().mean()


def least_squares_g(logits: Tensor, label: float = 1.0) -> Tensor:
    """Half the mean squared distance of generated images' logits to ``label``, the paper's c.

    Source:
        Mao et al. 2017, "Least Squares Generative Adversarial Networks", eq. 2 with eq. 9's
        labels, the factor one half included.

    Example:
        >>> least_squares_g(torch.tensor([1.0, 3.0]))
        tensor(1.)
    """
    return 0.5 * (_widen(logits) - label).square().mean()


def wasserstein_d_real(logits: Tensor) -> Tensor:
    """The critic's term of real images: the mean of ``-D(x)``.

    Source:
        Arjovsky et al. 2017, "Wasserstein GAN", algorithm 1; Gulrajani et al. 2017, eq. 3.

    Example:
        >>> wasserstein_d_real(torch.tensor([1.0, 2.0]))
        tensor(-1.5000)
    """
    return -_widen(logits).mean()


def wasserstein_d_fake(logits: Tensor) -> Tensor:
    """The critic's term of generated images: the mean of ``D(G(z))``.

    Source:
        Arjovsky et al. 2017, "Wasserstein GAN", algorithm 1; Gulrajani et al. 2017, eq. 3.

    Example:
        >>> wasserstein_d_fake(torch.tensor([1.0, 2.0]))
        tensor(1.5000)
    """
    return _widen(logits).mean()


def wasserstein_g(logits: Tensor) -> Tensor:
    """The generator's side: the mean of ``-D(G(z))``.

    Source:
        Arjovsky et al. 2017, "Wasserstein GAN", algorithm 1.

    Example:
        >>> wasserstein_g(torch.tensor([1.0, 2.0]))
        tensor(-1.5000)
    """
    return -_widen(logits).mean()
