import math

import pytest
import torch

from imgsynth.describe import build, describe
from imgsynth.images import from_uint8
from imgsynth.likelihoods import (
    Bernoulli,
    DiscretisedLogistic,
    Gaussian,
    LearnedGaussian,
    Likelihood,
    OptimalGaussian,
)

ALL = [Bernoulli, Gaussian, LearnedGaussian, OptimalGaussian, DiscretisedLogistic]
shape = (1, 2, 3)


def images_and_outputs(num=5):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(num, *shape, generator=generator) * 2 - 1
    return images, images + 0.3 * torch.randn(num, *shape, generator=generator)


@pytest.mark.parametrize("cls", ALL)
def test_a_likelihood_gives_one_figure_an_image_and_is_rebuilt_from_its_description(cls):
    likelihood = cls().eval()
    images, outputs = images_and_outputs()
    again = build(describe(likelihood))
    again.load_state_dict(likelihood.state_dict())
    for made in (likelihood, again.eval()):
        assert made.log_prob(images, outputs).shape == (5,)
        assert torch.equal(made.log_mass(images, outputs), likelihood.log_mass(images, outputs))


@pytest.mark.parametrize("cls", [c for c in ALL if c is not Bernoulli])
def test_masses_sum_to_one_over_the_levels_of_a_pixel(cls):
    likelihood = cls(levels=256).eval()
    x = from_uint8(torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1))
    total = likelihood.log_mass(x, torch.full_like(x, 0.2)).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-4)


def test_masses_of_bernoulli_sum_to_one_over_two_levels():
    x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
    assert Bernoulli().levels == 2
    assert Bernoulli().log_mass(x, torch.full_like(x, 0.7)).exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("cls", ALL)
def test_samples_have_the_stated_mean(cls):
    torch.manual_seed(0)
    likelihood = cls(**({"sigma": 0.1} if cls in {Gaussian, LearnedGaussian} else {})).eval()
    if cls is OptimalGaussian:
        likelihood.variance.fill_(0.01)
    if cls is DiscretisedLogistic:
        likelihood = DiscretisedLogistic(scale=0.05)
    outputs = torch.tensor([-0.4, 0.0, 0.3]).expand(40_000, 1, 1, 3)
    drawn = likelihood.sample(outputs)
    assert drawn.abs().max() <= 1
    error = drawn.std(0) / 200
    assert ((drawn.mean(0) - likelihood.mean(outputs)[0]).abs() < 4 * error).all()


def test_the_optimal_variance_is_the_mean_squared_error_and_maximises_the_likelihood():
    images, outputs = images_and_outputs()
    likelihood = OptimalGaussian(momentum=1.0)
    best = likelihood.log_prob(images, outputs).mean()
    error = (images - outputs).square().mean()
    assert likelihood.variance.item() == pytest.approx(error.item())
    for factor in (0.9, 1.1):
        other = Gaussian(sigma=math.sqrt(factor * error))
        assert other.log_prob(images, outputs).mean() < best


def test_the_gradient_of_the_optimal_variance_is_that_of_the_log_of_the_error():
    images, outputs = images_and_outputs()
    one, two = (outputs.clone().requires_grad_() for _ in range(2))
    OptimalGaussian().log_prob(images, one).mean().backward()
    dimensions = math.prod(shape)  # Rybkin et al. 2021, section 3.2: D/2 log MSE
    (-0.5 * dimensions * (images - two).square().mean().log()).backward()
    torch.testing.assert_close(one.grad, two.grad)


def test_the_first_batch_alone_decides_the_variance_used_after_it():
    images, outputs = images_and_outputs()
    likelihood = OptimalGaussian()
    likelihood.log_prob(images, outputs)
    assert likelihood.variance.item() == pytest.approx((images - outputs).square().mean().item())


def test_the_average_variance_weighs_batches_evenly_at_first():
    zeros = torch.zeros(1, *shape)
    likelihood = OptimalGaussian(momentum=0.5)
    for error in (1.0, 2.0, 3.0):
        likelihood.log_prob(zeros, zeros + error)
    # shares 1/2 of the newest, 1/4, 1/8, divided by their sum
    expected = (0.5 * 9 + 0.25 * 4 + 0.125 * 1) / 0.875
    assert likelihood.variance.item() == pytest.approx(expected)


def test_in_evaluation_the_variance_does_not_depend_on_the_images():
    images, outputs = images_and_outputs()
    likelihood = OptimalGaussian().eval()
    together = likelihood.log_prob(images, outputs)
    alone = torch.cat(
        [likelihood.log_prob(i[None], o[None]) for i, o in zip(images, outputs, strict=True)]
    )
    torch.testing.assert_close(together, alone)
    assert likelihood.variance.item() == 1


def test_images_without_error_have_a_finite_density():
    zeros = torch.zeros(1, *shape)
    assert OptimalGaussian().log_prob(zeros, zeros).isfinite()


def test_a_batch_that_overflows_does_not_spoil_the_average():
    zeros = torch.zeros(1, *shape)
    likelihood = OptimalGaussian()
    likelihood.log_prob(zeros, zeros + 0.5)
    likelihood.log_prob(zeros, zeros + torch.inf)
    assert likelihood.variance.item() == 0.25


def test_the_variance_stays_in_float32():
    assert OptimalGaussian().bfloat16().variance.dtype == torch.float32


def test_scales_are_learned():
    images, outputs = images_and_outputs(2000)
    for likelihood in (LearnedGaussian(), DiscretisedLogistic()):
        optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.1)
        for _ in range(150):
            optimizer.zero_grad()
            (-likelihood.log_prob(images, outputs).mean()).backward()
            optimizer.step()
        if isinstance(likelihood, LearnedGaussian):
            assert likelihood.sigma.item() == pytest.approx(0.3, rel=0.03)
        else:  # of the normal noise's standard deviation, a little less than s pi / sqrt(3)
            assert 0.14 < likelihood.log_scale.exp().item() < 0.18


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(sigma=0.0), "sigma must be above 0, got 0.0"),
        (lambda: LearnedGaussian(sigma=-1.0), "sigma must be above 0, got -1.0"),
        (lambda: Gaussian(levels=1), "levels must be at least 2, got 1"),
        (lambda: OptimalGaussian(momentum=0.0), "momentum must be above 0 and at most 1, got 0.0"),
        (lambda: DiscretisedLogistic(scale=0.0), "scale must be above 0, got 0.0"),
        (lambda: DiscretisedLogistic(levels=0), "levels must be at least 2, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_likelihood_that_lacks_a_method_says_so():
    class Mine(Likelihood):
        pass

    with pytest.raises(TypeError, match=r"Mine must define log_prob\(images, outputs\)"):
        Mine().log_prob(torch.zeros(1), torch.zeros(1))
