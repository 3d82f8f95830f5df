"""Random shifts against a reference that shifts one image at a time."""

import pytest
import torch

from imgsynth.augment import RandomTranslation
from imgsynth.describe import build, describe


def _shifted(image, down, right, fill):
    """Move the content of ``(C, H, W)`` with plain loops."""
    height, width = image.shape[1:]
    result = torch.full_like(image, fill)
    for row in range(height):
        for column in range(width):
            old_row, old_column = row - down, column - right
            if 0 <= old_row < height and 0 <= old_column < width:
                result[:, row, column] = image[:, old_row, old_column]
    return result


@pytest.mark.parametrize(("max_shift", "fill"), [(1, -1.0), (2, 0.5)])
def test_each_image_is_shifted_whole_by_at_most_max_shift(max_shift, fill):
    torch.manual_seed(0)
    images = torch.rand(64, 2, 4, 5)
    reach = range(-max_shift, max_shift + 1)
    found = set()
    for image, result in zip(images, RandomTranslation(max_shift, fill)(images), strict=True):
        matches = [
            (down, right)
            for down in reach
            for right in reach
            if torch.equal(result, _shifted(image, down, right, fill))
        ]
        assert len(matches) == 1
        found |= set(matches)
    assert len(found) > 0.7 * len(reach) ** 2


def test_all_nine_shifts_of_one_pixel_are_equally_likely():
    torch.manual_seed(0)
    images = torch.full((9000, 1, 3, 3), -1.0)
    images[:, 0, 1, 1] = 1.0
    counts = (RandomTranslation(1)(images) > 0).sum((0, 1))
    assert counts.sum() == 9000
    assert (counts - 1000).abs().max() < 5 * 1000**0.5


def test_the_same_seed_shifts_alike():
    images = torch.rand(8, 1, 6, 6)
    augment = RandomTranslation(2)
    torch.manual_seed(3)
    first = augment(images)
    torch.manual_seed(3)
    assert torch.equal(first, augment(images))


def test_the_gradient_is_one_for_pixels_kept_and_zero_for_pixels_moved_out():
    torch.manual_seed(0)
    images = torch.rand(16, 1, 4, 4, requires_grad=True)
    result = RandomTranslation(1)(images)
    result.sum().backward()
    kept = (result != -1).sum((1, 2, 3))
    assert set(images.grad.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(images.grad.sum((1, 2, 3)), kept.float())


def test_second_derivatives_pass_through():
    torch.manual_seed(0)
    images = torch.rand(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    augment = RandomTranslation(1)

    def shifted(images):
        torch.manual_seed(1)
        return augment(images).pow(3)

    assert torch.autograd.gradgradcheck(shifted, images)


def test_evaluation_mode_and_a_reach_of_zero_leave_images_alone():
    images = torch.rand(4, 1, 4, 4)
    assert RandomTranslation(2).eval()(images) is images
    assert RandomTranslation(0)(images) is images


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_of_the_images_is_kept(dtype):
    assert RandomTranslation(1)(torch.zeros(2, 1, 4, 4, dtype=dtype)).dtype == dtype


def test_the_shift_can_be_larger_than_the_image():
    torch.manual_seed(0)
    result = RandomTranslation(5, fill=0.25)(torch.ones(32, 1, 2, 2))
    assert set(result.unique().tolist()) == {0.25, 1.0}


def test_a_negative_reach_is_refused():
    with pytest.raises(ValueError, match="max_shift must be 0 or more, got -1"):
        RandomTranslation(-1)


def test_the_augmentation_can_be_rebuilt_from_its_description():
    again = build(describe(RandomTranslation(3, fill=0.0)))
    assert (again.max_shift, again.fill) == (3, 0.0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("max_shift", [1, 3])
def test_images_are_shifted_alike_with_and_without_a_gradient(max_shift, memory_format):
    images = torch.rand(32, 3, 5, 7).contiguous(memory_format=memory_format)
    augment = RandomTranslation(max_shift, fill=0.25)
    torch.manual_seed(3)
    with_gradient = augment(images.clone().requires_grad_())
    after = torch.get_rng_state()
    torch.manual_seed(3)
    without = augment(images)
    assert torch.equal(without, with_gradient)
    assert without.stride() == with_gradient.stride()
    assert torch.equal(torch.get_rng_state(), after)
