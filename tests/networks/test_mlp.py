"""Dense networks: shapes, conditions, gradients, descriptions."""

import pytest
import torch
from torch import nn

from imgsynth.describe import build, describe
from imgsynth.networks import MLPDiscriminator, MLPGenerator

SHAPE = (2, 5, 7)  # dense layers take any size


def test_the_generator_makes_images_between_minus_one_and_one():
    images = MLPGenerator(SHAPE, latent_dim=6, width=8)(100 * torch.randn(3, 6))
    assert images.shape == (3, *SHAPE)
    assert images.abs().max() <= 1


def test_the_generator_is_the_papers_stack_of_dense_layers():
    torch.manual_seed(0)
    net = MLPGenerator((1, 2, 2), latent_dim=3, width=4, depth=2)
    z = torch.randn(5, 3)
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    hidden = z
    for layer in linear[:-1]:
        hidden = hidden @ layer.weight.T + layer.bias
        hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    expected = torch.tanh(hidden @ linear[-1].weight.T + linear[-1].bias).reshape(5, 1, 2, 2)
    assert len(linear) == 3
    torch.testing.assert_close(net(z), expected)


def test_the_discriminator_returns_one_logit_an_image():
    net = MLPDiscriminator(SHAPE, width=8, depth=1)
    with torch.no_grad():
        net.head.linear.bias.fill_(50.0)  # a logit: beyond any probability
    logits = net(torch.zeros(3, *SHAPE))
    assert logits.shape == (3,)
    assert (logits > 40).all()


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_conditional_networks_answer_differently_to_each_class(spectral_norm):
    torch.manual_seed(0)
    generator = MLPGenerator(SHAPE, 3, latent_dim=4, width=8)
    discriminator = MLPDiscriminator(SHAPE, 3, width=8, spectral_norm=spectral_norm)
    images = generator(torch.ones(3, 4), torch.arange(3))
    assert len(images.unique(dim=0)) == 3
    logits = discriminator(torch.ones(3, *SHAPE), torch.arange(3))
    assert len(logits.unique()) == 3
    assert (generator.num_classes, discriminator.num_classes) == (3, 3)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_every_parameter_gets_a_gradient(spectral_norm):
    generator = MLPGenerator(SHAPE, 3, latent_dim=4, width=8)
    discriminator = MLPDiscriminator(SHAPE, 3, width=8, dropout=0.1, spectral_norm=spectral_norm)
    labels = torch.arange(6) % 3
    discriminator(generator(torch.randn(6, 4), labels), labels).sum().backward()
    for net in (generator, discriminator):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    net = MLPDiscriminator(SHAPE, width=64, dropout=0.5)
    images = torch.randn(4, *SHAPE)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


def test_every_layer_is_spectrally_normalised_on_demand():
    net = MLPDiscriminator(SHAPE, 3, width=8, depth=2, spectral_norm=True)
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    assert len(layers) == 4
    for _ in range(500):  # in training each use is a step of the power iteration
        weights = [layer.weight for layer in layers]
    norms = torch.stack([torch.linalg.matrix_norm(w, 2) for w in weights])
    torch.testing.assert_close(norms, torch.ones(4), rtol=0.01, atol=0)


def test_images_of_another_size_are_named():
    with pytest.raises(ValueError, match=r"built for .* \(B, 2, 5, 7\), got \(3, 2, 7, 5\)"):
        MLPDiscriminator(SHAPE)(torch.zeros(3, 2, 7, 5))


@pytest.mark.parametrize("cls", [MLPGenerator, MLPDiscriminator])
def test_a_missing_image_shape_is_reported_at_construction(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} needs the size of its images"):
        cls()


@pytest.mark.parametrize("cls", [MLPGenerator, MLPDiscriminator])
def test_a_network_can_be_rebuilt_from_its_description(cls):
    net = cls(SHAPE, num_classes=4, width=8, depth=1)
    description = describe(net)
    assert description["class_path"] == f"imgsynth.networks.{cls.__name__}"
    again = build(description)
    again.load_state_dict(net.state_dict())
    assert (again.image_shape, again.num_classes) == (SHAPE, 4)
