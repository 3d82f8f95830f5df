"""Posterior collapse: a VAE whose latents say nothing, and why."""

from dataclasses import dataclass

ACTIVE = 0.01
"""A latent is active if the variance over the images of its posterior mean is above this."""

_LEAST = 0.5
"""Nats an image, below which all latents together say next to nothing of it."""


@dataclass(frozen=True)
class Posterior:
    """What a validation found, and what decides how much a latent may cost.

    Args:
        kl: Mean KL of an image, in nats.
        active: Active latents.
        latent_dim: All of them.
        spread: Standard deviation of the images around their mean image, in [-1, 1].
        sigma: Standard deviation of the likelihood, if it is a fixed one; else None.
        beta: The weight of the KL.
        warmup: Images over which that weight rose.
        conditional: Whether the decoder takes labels.
    """

    kl: float
    active: int
    latent_dim: int
    spread: float
    sigma: float | None
    beta: float
    warmup: int
    conditional: bool


def collapse(found: Posterior) -> str | None:
    """Say that the posterior has collapsed, and the most likely cause; None if it has not.

    Source:
        Burda et al. 2016, "Importance Weighted Autoencoders", section 5.3 (active units); Bowman
        et al. 2016, "Generating Sentences from a Continuous Space", section 3.1 (KL annealing);
        Lucas et al. 2019, "Don't Blame the ELBO!" (the observation noise as a cause).

    Example:
        >>> dead = Posterior(0.01, 0, 32, 0.4, sigma=1.0, beta=1.0, warmup=0, conditional=False)
        >>> print(collapse(dead).rpartition(": ")[2])
        what latents could explain is noise to it. Use a smaller sigma, or OptimalGaussian.
    """
    if found.active and found.kl >= _LEAST:
        return None
    return (
        f"Posterior collapse: {found.active} of {found.latent_dim} latents are active (KL "
        f"{found.kl:.2g} nats an image), so samples and reconstructions hardly depend on them. "
        + _cause(found)
    )


def _cause(found: Posterior) -> str:
    if found.spread < 1e-4:
        return "The images are all alike: there is nothing to encode."
    if found.sigma is not None and found.sigma > found.spread:
        return (
            f"The likelihood's sigma of {found.sigma:.2g} is larger than the spread of the images "
            f"({found.spread:.2g}): what latents could explain is noise to it. Use a smaller "
            "sigma, or OptimalGaussian."
        )
    if found.beta > 1:
        return (
            f"beta = {found.beta:g} makes a nat of a latent cost {found.beta:g}: more than it "
            "explains. Use a smaller beta, or free_bits."
        )
    if not found.warmup:
        return (
            "The KL had its full weight from the first image, before the decoder could use "
            "latents. Give kl_warmup, about a quarter of the run, or free_bits."
        )
    labels = " with the labels" if found.conditional else ""
    return (
        f"The decoder explains the images{labels} without latents, or learning broke down: give "
        "free_bits, a longer kl_warmup, a lower learning rate or a smaller decoder."
    )
