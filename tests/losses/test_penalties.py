"""Gradient penalties against closed forms."""

import pytest
import torch
from torch import nn

from imgsynth.losses import gradient_penalty, zero_centred_penalty


def _images(num=4, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num, 2, 3, 3, generator=generator, **options) * 2 - 1


def test_the_penalty_of_a_linear_discriminator_is_its_squared_weight():
    weight = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1))
    images = _images().requires_grad_()
    penalty = zero_centred_penalty((images * weight).sum((1, 2, 3)), images)
    torch.testing.assert_close(penalty, weight.square().sum().expand(4))


def test_the_penalty_of_a_quadratic_discriminator_is_four_times_its_squared_image():
    images = _images().requires_grad_()
    penalty = zero_centred_penalty(images.square().sum((1, 2, 3)), images)
    torch.testing.assert_close(penalty, 4 * images.square().sum((1, 2, 3)))


def test_the_penalty_of_patches_is_that_of_their_sum():
    images = _images().requires_grad_()
    patches = nn.Conv2d(2, 1, 2)(images)
    expected = zero_centred_penalty(patches.sum((1, 2, 3)), images)
    torch.testing.assert_close(zero_centred_penalty(patches, images), expected)


def test_r1_is_zero_for_a_discriminator_that_ignores_intensity():
    images = _images().requires_grad_()
    assert zero_centred_penalty((0 * images).sum((1, 2, 3)), images).tolist() == [0.0] * 4


def test_the_penalty_has_the_right_gradient_with_respect_to_the_discriminator():
    weight = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    images = _images(dtype=torch.float64).requires_grad_()
    logits = (weight * images).sum((1, 2, 3)).square()  # slope 2 <w, x> w
    zero_centred_penalty(logits, images).sum().backward()
    inner = (weight * images).sum((1, 2, 3)).detach()
    expected = torch.autograd.grad(
        (4 * (weight * images.detach()).sum((1, 2, 3)).square() * weight.square().sum()).sum(),
        weight,
    )[0]
    assert inner.abs().min() > 0
    torch.testing.assert_close(weight.grad, expected)


def test_the_penalty_is_differentiable_with_respect_to_the_weights():
    images = _images(2, dtype=torch.float64).requires_grad_()

    def penalty(weight):
        return zero_centred_penalty((weight * images).sum((1, 2, 3)).tanh(), images)

    weight = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(penalty, weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_penalty_of_half_precision_images_is_summed_in_float32(dtype):
    images = _images(dtype=torch.float32).to(dtype).requires_grad_()
    penalty = zero_centred_penalty((300 * images).sum((1, 2, 3)), images)
    assert penalty.dtype == torch.float32
    torch.testing.assert_close(penalty, torch.full((4,), 18 * 300.0**2), rtol=1e-2, atol=0)


def test_images_without_grad_are_named():
    images = _images()
    with pytest.raises(ValueError, match=r"shape \(4, 2, 3, 3\); call images.requires_grad_\(\)"):
        zero_centred_penalty(images.sum((1, 2, 3)), images)


def test_logits_without_a_graph_are_named():
    images = _images().requires_grad_()
    with pytest.raises(ValueError, match="requires_grad=False of shape"):
        zero_centred_penalty(images.sum((1, 2, 3)).detach(), images)


def test_logits_of_other_images_are_an_error_instead_of_zero():
    other, images = _images().requires_grad_(), _images().requires_grad_()
    with pytest.raises(ValueError, match="do not depend on them"):
        zero_centred_penalty(other.sum((1, 2, 3)), images)


def test_the_gradient_penalty_of_a_linear_critic_is_known():
    weight = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1))
    penalty = gradient_penalty(lambda x: (x * weight).sum((1, 2, 3)), _images(), _images(seed=2))
    torch.testing.assert_close(penalty, (weight.norm() - 1).square().expand(4))


def test_the_gradient_penalty_looks_between_real_and_generated_images():
    real, fake = _images(seed=1, dtype=torch.float64), _images(seed=2, dtype=torch.float64)
    share = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    penalty = gradient_penalty(lambda x: 0.5 * x.square().sum((1, 2, 3)), real, fake, share)
    between = torch.stack([e * r + (1 - e) * f for e, r, f in zip(share, real, fake, strict=True)])
    torch.testing.assert_close(penalty, (between.flatten(1).norm(dim=1) - 1).square())


def test_the_target_of_the_gradient_penalty_can_be_zero():
    penalty = gradient_penalty(
        lambda x: (3 * x).sum((1, 2, 3)), _images(), _images(seed=2), target=0.0
    )
    torch.testing.assert_close(penalty, torch.full((4,), 9.0 * 18))


def test_shares_are_drawn_anew_for_each_image_from_the_default_generator():
    seen = []

    def critic(images):
        seen.append(images.detach()[:, 0, 0, 0])
        return images.sum((1, 2, 3))

    for _ in range(2):
        torch.manual_seed(5)
        gradient_penalty(critic, torch.ones(64, 2, 3, 3), torch.zeros(64, 2, 3, 3))
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)
    assert len(seen[0].unique()) == 64
    assert 0 <= seen[0].min() < 0.2 < 0.8 < seen[0].max() <= 1


def test_a_flat_critic_has_penalty_one_and_finite_gradients():
    weight = torch.zeros(2, 3, 3, requires_grad=True)
    penalty = gradient_penalty(lambda x: (x * weight).sum((1, 2, 3)), _images(), _images(seed=2))
    penalty.mean().backward()
    assert penalty.tolist() == [1.0] * 4
    assert weight.grad.isfinite().all()


def test_the_gradient_penalty_ignores_autocast():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(2, 4, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(16, 1))
    arguments = (critic, _images(), _images(seed=2), torch.full((4,), 0.5))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gradient_penalty(*arguments)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, gradient_penalty(*arguments))


def test_half_precision_fakes_meet_a_float32_critic():
    penalty = gradient_penalty(
        nn.Sequential(nn.Flatten(), nn.Linear(18, 1)), _images(), _images(seed=2).half()
    )
    assert penalty.dtype == torch.float32


def test_the_gradient_penalty_sends_nothing_to_the_generator():
    fake = _images(seed=2).requires_grad_()
    weight = torch.ones(2, 3, 3, requires_grad=True)
    penalty = gradient_penalty(lambda x: (x * weight).square().sum((1, 2, 3)), _images(), fake)
    penalty.sum().backward()
    assert fake.grad is None
    assert weight.grad.abs().sum() > 0


def test_unequal_numbers_of_images_are_named():
    with pytest.raises(ValueError, match=r"\(4, 2, 3, 3\) and \(3, 2, 3, 3\)"):
        gradient_penalty(lambda x: x.sum((1, 2, 3)), _images(), _images(3))


def test_a_share_of_the_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"expected one share per image, shape \(4,\), got \(2,\)"):
        gradient_penalty(lambda x: x.sum((1, 2, 3)), _images(), _images(), torch.zeros(2))
