"""Convolutional networks: sizes, the papers' layouts, conditions, gradients, descriptions."""

import pytest
import torch
from torch import nn

from imgsynth.describe import build, describe
from imgsynth.losses import gradient_penalty
from imgsynth.networks import DCGANDiscriminator, DCGANGenerator

SIZES = [(8, 8), (16, 16), (28, 28), (32, 32), (48, 48), (64, 64), (128, 128), (64, 96), (56, 32)]


@pytest.mark.parametrize("full_size_map", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_size_and_number_of_channels_is_made_and_judged(channels, size, full_size_map):
    shape = (channels, *size)
    options = {"width": 4, "max_width": 8, "full_size_map": full_size_map}
    generator = DCGANGenerator(shape, latent_dim=3, **options)
    images = generator(100 * torch.randn(2, 3))
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1
    assert DCGANDiscriminator(shape, **options)(images).shape == (2,)


def _maps(net, *arguments):
    """Shapes of what the convolutions and batch normalisations return, batch left out."""
    shapes = []
    handles = [
        m.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:])))
        for m in net.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ]
    net(*arguments)
    for handle in handles:
        handle.remove()
    return shapes


def test_the_papers_generator_at_64_pixels_has_the_channels_of_its_figure_1():
    net = DCGANGenerator((3, 64, 64), width=128, max_width=1024)
    assert net.project.weight.shape == (1024 * 4 * 4, 100)
    assert _maps(net, torch.randn(2, 100)) == [
        (512, 8, 8),
        (256, 16, 16),
        (128, 32, 32),
        (3, 64, 64),
    ]


@pytest.mark.parametrize("width", [32, 64])
def test_the_classic_setting_at_128_pixels_starts_from_4x4x512(width):
    net = DCGANGenerator((3, 128, 128), latent_dim=100, width=width)
    assert net.project.weight.shape == (512 * 4 * 4, 100)
    assert _maps(net, torch.randn(2, 100))[-2:] == [(width, 64, 64), (3, 128, 128)]


def test_the_discriminator_halves_down_to_4x4_while_channels_double():
    net = DCGANDiscriminator((1, 32, 32), width=8)
    assert _maps(net, torch.zeros(2, 1, 32, 32)) == [(8, 16, 16), (16, 8, 8), (32, 4, 4)]
    assert net.head.linear.weight.shape == (1, 32 * 4 * 4)


def test_small_digits_get_maps_of_four_two_and_one_times_the_width():
    options = {"width": 8, "start": 2, "full_size_map": True}
    generator = DCGANGenerator((1, 8, 8), 10, latent_dim=32, **options)
    labels = torch.tensor([3, 4])
    assert generator.project.out_features == 32 * 2 * 2
    assert _maps(generator, torch.randn(2, 32), labels) == [(16, 4, 4), (8, 8, 8), (1, 8, 8)]
    discriminator = DCGANDiscriminator(
        (1, 8, 8), 10, batch_norm=False, spectral_norm=True, **options
    )
    maps = _maps(discriminator, torch.zeros(2, 1, 8, 8), labels)
    assert maps == [(8, 8, 8), (16, 4, 4), (32, 2, 2)]


def test_the_generator_is_the_papers_stack_of_layers():
    torch.manual_seed(0)
    net = DCGANGenerator((1, 8, 8), latent_dim=3, width=4)
    z = torch.randn(5, 3)
    first = net.project.weight @ z.T
    hidden = first.T.reshape(5, 4, 4, 4)
    mean, var = hidden.mean((0, 2, 3), True), hidden.var((0, 2, 3), False, keepdim=True)
    norm, up = net.layers[0], net.layers[2]
    hidden = (hidden - mean) / (var + 1e-5).sqrt() * norm.weight.view(1, -1, 1, 1)
    hidden = hidden.clamp(min=0)
    expected = torch.zeros(5, 1, 10, 10) + up.bias  # 4x4 stamps at stride 2, a border of 1 cut
    for row in range(4):
        for column in range(4):
            stamp = torch.einsum("bc,cohw->bohw", hidden[:, :, row, column], up.weight)
            expected[:, :, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += stamp
    torch.testing.assert_close(net(z), expected[:, :, 1:-1, 1:-1].tanh())


def test_weights_start_as_in_the_paper():
    torch.manual_seed(0)
    for net in (DCGANGenerator((3, 32, 32), width=32), DCGANDiscriminator((3, 32, 32), width=32)):
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            if isinstance(module, nn.BatchNorm2d):
                assert module.weight.mean().item() == pytest.approx(1.0, abs=0.02)
                assert module.weight.std() < 0.04


def test_the_first_map_of_the_discriminator_is_not_batch_normalised():
    net = DCGANDiscriminator((1, 32, 32), width=8)
    kinds = [type(m) for m in net.layers]
    assert kinds[:2] == [nn.Conv2d, nn.LeakyReLU]
    assert kinds.count(nn.BatchNorm2d) == 2
    assert all(m.negative_slope == 0.2 for m in net.layers if isinstance(m, nn.LeakyReLU))


def test_without_batch_norm_no_image_sees_another():
    torch.manual_seed(0)
    net = DCGANDiscriminator((1, 16, 16), width=4, batch_norm=False)
    images = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(net(images)[:1], net(images[:1]))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    generator = DCGANGenerator((1, 16, 16), latent_dim=3, width=4, batch_norm=False)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in generator.modules())


def test_every_layer_is_spectrally_normalised_on_demand():
    net = DCGANDiscriminator((1, 16, 16), 3, width=4, batch_norm=False, spectral_norm=True)
    kinds = nn.Linear | nn.Embedding | nn.Conv2d
    layers = [m for m in net.modules() if isinstance(m, kinds)]
    assert len(layers) == 4
    for _ in range(500):  # in training each use is a step of the power iteration
        weights = [layer.weight.flatten(1) for layer in layers]
    norms = torch.stack([torch.linalg.matrix_norm(w, 2) for w in weights])
    torch.testing.assert_close(norms, torch.ones(4), rtol=0.01, atol=0)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_every_parameter_gets_a_gradient(spectral_norm):
    torch.manual_seed(0)
    generator = DCGANGenerator((1, 16, 16), 3, latent_dim=4, width=8)
    discriminator = DCGANDiscriminator(
        (1, 16, 16),
        3,
        width=8,
        batch_norm=not spectral_norm,
        spectral_norm=spectral_norm,
        dropout=0.1,
    )
    labels = torch.arange(6) % 3
    discriminator(generator(torch.randn(6, 4), labels), labels).square().sum().backward()
    for net in (generator, discriminator):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_gradient_penalty_reaches_every_weight_of_the_critic():
    torch.manual_seed(0)
    critic = DCGANDiscriminator((1, 16, 16), 3, width=4, batch_norm=False)
    labels = torch.arange(3)
    penalty = gradient_penalty(
        lambda images: critic(images, labels), torch.randn(3, 1, 16, 16), torch.zeros(3, 1, 16, 16)
    )
    penalty.mean().backward()
    weights = [p for name, p in critic.named_parameters() if name.endswith("weight")]
    assert all(w.grad.abs().sum() > 0 for w in weights)


@pytest.mark.parametrize("size", [(4, 4), (7, 7), (18, 18), (9, 8), (30, 30), (64, 63), (100, 101)])
@pytest.mark.parametrize("cls", [DCGANGenerator, DCGANDiscriminator])
def test_a_size_that_doubling_cannot_reach_is_refused_with_the_possible_ones(cls, size):
    message = rf"{cls.__name__} cannot .* {size[0]}x{size[1]} pixels .* 8, 16, 28, 32"
    with pytest.raises(ValueError, match=message):
        cls((3, *size))


@pytest.mark.parametrize("cls", [DCGANGenerator, DCGANDiscriminator])
def test_a_missing_image_shape_is_reported_at_construction(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} needs the size of its images"):
        cls()


def test_images_of_another_size_are_named():
    with pytest.raises(ValueError, match=r"built for .* \(B, 1, 16, 16\), got \(2, 1, 32, 32\)"):
        DCGANDiscriminator((1, 16, 16), width=4)(torch.zeros(2, 1, 32, 32))


@pytest.mark.parametrize("cls", [DCGANGenerator, DCGANDiscriminator])
def test_a_network_can_be_rebuilt_from_its_description(cls):
    net = cls((1, 16, 16), num_classes=4, width=4, full_size_map=True)
    description = describe(net)
    assert description["class_path"] == f"imgsynth.networks.{cls.__name__}"
    again = build(description)
    again.load_state_dict(net.state_dict())
    assert (again.image_shape, again.num_classes) == ((1, 16, 16), 4)
