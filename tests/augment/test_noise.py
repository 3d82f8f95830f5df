import math

import pytest
import torch

from imgsynth.augment import GaussianNoise
from imgsynth.describe import build, describe


def test_noise_is_normal_independent_and_of_the_stated_deviation():
    torch.manual_seed(0)
    noise = (GaussianNoise(0.3)(torch.full((50, 2, 30, 30), 0.5)) - 0.5) / 0.3
    num = noise.numel()
    assert abs(noise.mean()) < 4 / num**0.5
    assert abs(noise.var() - 1) < 4 * (2 / num) ** 0.5
    assert abs(noise.pow(4).mean() - 3) < 4 * (96 / num) ** 0.5
    neighbours = (noise[..., 1:] * noise[..., :-1]).mean()
    channels = (noise[:, 0] * noise[:, 1]).mean()
    assert max(abs(neighbours), abs(channels)) < 5 / (num / 2) ** 0.5


def test_noise_obeys_the_seed_and_is_new_each_time():
    images = torch.zeros(2, 1, 4, 4)
    torch.manual_seed(1)
    first, second = GaussianNoise()(images), GaussianNoise()(images)
    torch.manual_seed(1)
    assert torch.equal(GaussianNoise()(images), first)
    assert not torch.equal(first, second)


def test_gradients_pass_noise_unchanged():
    images = torch.zeros(1, 1, 2, 2, requires_grad=True)
    (3 * GaussianNoise()(images)).sum().backward()
    assert (images.grad == 3).all()


def test_no_noise_leaves_images_alone_and_the_description_rebuilds():
    images = torch.rand(1, 3, 2, 2)
    assert torch.equal(GaussianNoise(0.0)(images), images)
    assert build(describe(GaussianNoise(0.7))).sigma == 0.7


@pytest.mark.parametrize("sigma", [-0.1, math.inf, math.nan])
def test_a_deviation_that_is_none_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma must be at least 0"):
        GaussianNoise(sigma)
