"""Random mirror images against NumPy's."""

import numpy as np
import pytest
import torch

from imgsynth.augment.flip import RandomFlip
from imgsynth.describe import build, describe


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_each_image_is_kept_or_mirrored_left_to_right(dtype, channels):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (40, channels, 3, 4)).to(dtype)
    before = images.clone()
    result = RandomFlip()(images)
    assert (result.dtype, result.shape) == (images.dtype, images.shape)
    kept = mirrored = 0
    for image, found in zip(images.float().numpy(), result.float().numpy(), strict=True):
        kept += np.array_equal(found, image)
        mirrored += np.array_equal(found, np.flip(image, 2))
    assert kept + mirrored == 40
    assert min(kept, mirrored) > 5
    assert torch.equal(images, before)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_images_are_mirrored_as_often_as_asked_for(p):
    torch.manual_seed(0)
    images = torch.tensor([0.0, 1.0]).expand(10000, 1, 1, 2)
    count = int(RandomFlip(p)(images)[:, 0, 0, 0].sum())
    assert abs(count - 10000 * p) <= 4 * (10000 * p * (1 - p)) ** 0.5


def test_the_same_seed_flips_alike_and_the_next_batch_differs():
    images = torch.rand(64, 1, 2, 2)
    augment = RandomFlip()
    torch.manual_seed(3)
    first, second = augment(images), augment(images)
    torch.manual_seed(3)
    assert torch.equal(first, augment(images))
    assert not torch.equal(first, second)


def test_the_gradient_returns_to_the_pixel_it_came_from():
    torch.manual_seed(0)
    images = torch.rand(16, 2, 2, 3, requires_grad=True)
    weights = torch.rand(16, 2, 2, 3)
    result = RandomFlip()(images)
    (result * weights).sum().backward()
    mirrored = (result != images).any(3).any(2).any(1)
    assert 0 < mirrored.sum() < 16
    assert torch.equal(images.grad[mirrored], weights[mirrored].flip(3))
    assert torch.equal(images.grad[~mirrored], weights[~mirrored])


def test_second_derivatives_pass_through():
    images = torch.rand(4, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    augment = RandomFlip()

    def flipped(images):
        torch.manual_seed(1)
        return augment(images).pow(3)

    assert torch.autograd.gradgradcheck(flipped, images)


def test_evaluation_mode_leaves_images_alone():
    images = torch.rand(4, 1, 4, 4)
    assert RandomFlip(1.0).eval()(images) is images


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_a_probability_out_of_range_is_refused(p):
    with pytest.raises(ValueError, match=f"p must lie between 0 and 1, got {p}"):
        RandomFlip(p)


def test_the_augmentation_can_be_rebuilt_from_its_description():
    assert build(describe(RandomFlip(0.3))).p == 0.3
