import pytest
import torch
from torch import distributions

from imgsynth.losses import normal_kl


def test_the_kl_of_normals_equals_the_closed_form_of_torch():
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    logvar = 2 * torch.randn(7, 5, generator=generator, dtype=torch.float64)
    posterior = distributions.Normal(mu, (0.5 * logvar).exp())
    prior = distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    expected = distributions.kl_divergence(posterior, prior)
    torch.testing.assert_close(normal_kl(mu, logvar), expected, rtol=1e-12, atol=1e-12)


def test_the_kl_of_normals_is_the_mean_log_ratio_of_samples():
    mu, logvar = torch.tensor([0.7, -1.5, 0.0]).double(), torch.tensor([-1.0, 0.5, 2.0]).double()
    noise = torch.randn(400_000, 3, generator=torch.Generator().manual_seed(1)).double()
    z = mu + (0.5 * logvar).exp() * noise
    ratio = -0.5 * (logvar + noise.square()) + 0.5 * z.square()
    error = ratio.std(0) / len(ratio) ** 0.5
    assert ((ratio.mean(0) - normal_kl(mu, logvar)).abs() < 4 * error).all()


def test_the_kl_is_zero_and_flat_at_the_prior():
    mu, logvar = torch.zeros(2, 3).requires_grad_(), torch.zeros(2, 3).requires_grad_()
    normal_kl(mu, logvar).sum().backward()
    assert not mu.grad.any()
    assert not logvar.grad.any()


def test_the_kl_is_exact_next_to_the_prior_where_terms_nearly_cancel():
    logvar = torch.full((1,), 1e-3)
    exact = 0.5 * (torch.expm1(logvar.double()) - logvar.double())
    torch.testing.assert_close(normal_kl(torch.zeros(1), logvar).double(), exact, rtol=2e-4, atol=0)


def test_the_kl_of_half_precision_is_computed_in_float32():
    kl = normal_kl(torch.full((1,), 300.0).half(), torch.zeros(1).half())
    assert kl.dtype == torch.float32
    assert kl.item() == 45_000  # 300 squared is more than half precision holds


def test_the_kl_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2,\)"):
        normal_kl(torch.zeros(2, 3), torch.zeros(2))
