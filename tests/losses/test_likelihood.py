import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions
from torch.nn import functional as F

from imgsynth.losses import (
    bernoulli_log_prob,
    bits_per_dimension,
    discretised_logistic_log_mass,
    discretised_normal_log_mass,
    importance_weighted,
    normal_log_prob,
)

MASSES = {
    "normal": (discretised_normal_log_mass, lambda s: 2 * math.log(s), stats.norm),
    "logistic": (discretised_logistic_log_mass, math.log, stats.logistic),
}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(num=256):
    return torch.linspace(-1, 1, num, dtype=torch.float64)


def test_bernoulli_equals_the_distribution_of_torch():
    logits = 5 * drawn(4, 2, 3, 3)
    images = drawn(4, 2, 3, 3, seed=1).sign()
    expected = distributions.Bernoulli(logits=logits).log_prob((images + 1) / 2)
    torch.testing.assert_close(
        bernoulli_log_prob(images, logits), expected.flatten(1).sum(1), rtol=1e-12, atol=1e-12
    )


def test_bernoulli_of_gray_images_is_their_cross_entropy():
    logits, images = drawn(4, 1, 3, 3), drawn(4, 1, 3, 3, seed=1).tanh()
    expected = F.binary_cross_entropy_with_logits(logits, (images + 1) / 2, reduction="none")
    torch.testing.assert_close(bernoulli_log_prob(images, logits), -expected.flatten(1).sum(1))


def test_bernoulli_probabilities_of_all_binary_images_sum_to_one():
    logits = drawn(1, 1, 2, 2).expand(16, -1, -1, -1)
    images = torch.tensor([[i >> k & 1 for k in range(4)] for i in range(16)]) * 2.0 - 1
    total = bernoulli_log_prob(images.view(16, 1, 2, 2).double(), logits).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_bernoulli_is_finite_for_logits_that_are_sure_and_wrong():
    logits = torch.tensor([[200.0, -200.0]]).requires_grad_()
    log_prob = bernoulli_log_prob(torch.tensor([[-1.0, 1.0]]), logits)
    assert log_prob.item() == -400
    log_prob.sum().backward()
    assert logits.grad.tolist() == [[-1.0, 1.0]]


def test_the_normal_density_equals_that_of_torch():
    images, mean = drawn(4, 3, 2, 2).tanh(), drawn(4, 3, 2, 2, seed=1)
    logvar = torch.tensor(-1.3).double()
    expected = distributions.Normal(mean, (0.5 * logvar).exp()).log_prob(images)
    torch.testing.assert_close(
        normal_log_prob(images, mean, logvar), expected.flatten(1).sum(1), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", MASSES)
@pytest.mark.parametrize("scale", [1e-3, 0.05, 1.0, 30.0])
@pytest.mark.parametrize("mean", [-3.0, -0.5, 0.0031, 1.0])
def test_discrete_masses_equal_differences_of_the_distribution_of_scipy(name, scale, mean):
    mass, parameter, reference = MASSES[name]
    x = levels()
    # the difference of the smaller tail, where it does not cancel
    low, high = (x.numpy() - 1 / 255 - mean) / scale, (x.numpy() + 1 / 255 - mean) / scale
    low[0], high[-1] = -np.inf, np.inf
    left = reference.cdf(high) - reference.cdf(low)
    right = reference.sf(low) - reference.sf(high)
    expected = np.where(low + high > 0, right, left)
    found = mass(
        x.view(-1, 1, 1, 1),
        torch.full((256, 1, 1, 1), mean, dtype=torch.float64),
        torch.tensor(parameter(scale), dtype=torch.float64),
    ).exp()
    assert np.allclose(found.numpy(), expected, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("name", MASSES)
@pytest.mark.parametrize("num", [2, 16, 256, 65536])
@pytest.mark.parametrize("scale", [1e-4, 0.02, 0.5, 20.0])
def test_discrete_masses_sum_to_one_over_the_levels(name, num, scale):
    mass, parameter, _ = MASSES[name]
    x = levels(num).view(-1, 1, 1, 1)
    means = torch.full_like(x, 0.137)
    total = mass(x, means, torch.tensor(parameter(scale)).double(), num).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", MASSES)
def test_discrete_masses_of_float32_and_of_8_bit_images_sum_to_one(name):
    from imgsynth.images import from_uint8

    mass, parameter, _ = MASSES[name]
    x = from_uint8(torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1))
    for scale in (0.003, 0.1, 2.0):
        total = mass(x, torch.full_like(x, -0.4), torch.tensor(parameter(scale))).exp().sum()
        assert total.item() == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("name", MASSES)
def test_a_narrow_mass_is_the_density_times_the_width_of_a_level(name):
    mass, parameter, reference = MASSES[name]
    x = torch.full((1, 1, 1, 1), 11 / 255, dtype=torch.float64)
    found = mass(x, torch.zeros_like(x), torch.tensor(parameter(0.2)).double()).exp().item()
    assert found == pytest.approx(reference.pdf(11 / 255, scale=0.2) * 2 / 255, rel=2e-4)


@pytest.mark.parametrize("name", MASSES)
def test_discrete_masses_have_finite_gradients_far_from_the_image(name):
    mass, parameter, _ = MASSES[name]
    x = levels().float().view(-1, 1, 1, 1)
    for scale in (0.005, 0.05, 100.0):
        mean = torch.full_like(x, 1.7).requires_grad_()
        log_scale = torch.tensor(parameter(scale)).requires_grad_()
        log_mass = mass(x, mean, log_scale)
        log_mass.sum().backward()
        assert log_mass.isfinite().all()
        assert mean.grad.isfinite().all()
        assert log_scale.grad.isfinite()


@pytest.mark.parametrize("name", MASSES)
def test_gradients_of_discrete_masses_equal_finite_differences(name):
    mass, parameter, _ = MASSES[name]
    x = levels()[::51].view(-1, 1, 1, 1)
    mean = (x + 0.05).requires_grad_()
    log_scale = torch.tensor(parameter(0.1)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: mass(x, m, s), (mean, log_scale))


def test_the_importance_weighted_bound_is_the_log_of_the_mean_weight():
    weights = drawn(50, 3).exp()
    torch.testing.assert_close(importance_weighted(weights.log()), weights.mean(0).log())


def test_the_importance_weighted_bound_of_one_sample_is_its_log_weight():
    log_weights = drawn(1, 5)
    assert torch.equal(importance_weighted(log_weights), log_weights[0])


def test_the_importance_weighted_bound_rises_with_the_number_of_samples():
    log_weights = 3 * drawn(64, 2000)
    means = [importance_weighted(log_weights[:n]).mean().item() for n in (1, 2, 4, 8, 16, 32, 64)]
    assert means == sorted(means)


def test_uniform_images_of_256_levels_have_8_bits_per_dimension():
    assert bits_per_dimension(torch.tensor([-12 * math.log(256)]), 12).item() == pytest.approx(8)


def test_bits_need_dimensions():
    with pytest.raises(ValueError, match="num_dimensions must be at least 1, got 0"):
        bits_per_dimension(torch.zeros(1), 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_likelihoods_of_half_precision_are_computed_in_float32(dtype):
    x = torch.ones(1, 1, 300, 300, dtype=dtype)
    for log_prob in (
        bernoulli_log_prob(x, -x),
        normal_log_prob(x, -x, torch.zeros((), dtype=dtype)),
        discretised_normal_log_mass(x, -x, torch.zeros((), dtype=dtype)),
        discretised_logistic_log_mass(x, -x, torch.zeros((), dtype=dtype)),
    ):
        assert log_prob.dtype == torch.float32
        assert log_prob.isfinite().all()
