"""Loss terms as pure functions of tensors."""

from imgsynth.losses.adversarial import (
    hinge_d_fake,
    hinge_d_real,
    hinge_g,
    least_squares_d_fake,
    least_squares_d_real,
    least_squares_g,
    minimax_g,
    nonsaturating_d_fake,
    nonsaturating_d_real,
    nonsaturating_g,
    wasserstein_d_fake,
    wasserstein_d_real,
    wasserstein_g,
)
from imgsynth.losses.divergence import normal_kl
from imgsynth.losses.likelihood import (
    bernoulli_log_prob,
    bits_per_dimension,
    discretised_logistic_log_mass,
    discretised_normal_log_mass,
    importance_weighted,
    normal_log_prob,
)
from imgsynth.losses.penalties import gradient_penalty, zero_centred_penalty

__all__ = [
    "bernoulli_log_prob",
    "bits_per_dimension",
    "discretised_logistic_log_mass",
    "discretised_normal_log_mass",
    "gradient_penalty",
    "hinge_d_fake",
    "hinge_d_real",
    "hinge_g",
    "importance_weighted",
    "least_squares_d_fake",
    "least_squares_d_real",
    "least_squares_g",
    "minimax_g",
    "nonsaturating_d_fake",
    "nonsaturating_d_real",
    "nonsaturating_g",
    "normal_kl",
    "normal_log_prob",
    "wasserstein_d_fake",
    "wasserstein_d_real",
    "wasserstein_g",
    "zero_centred_penalty",
]
