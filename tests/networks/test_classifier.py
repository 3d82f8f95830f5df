"""Classifiers: shapes, features, gradients, descriptions; ResNet18 against torchvision's."""

import json

import pytest
import torch
from torch import nn
from torchvision import models

from imgsynth.describe import build, describe
from imgsynth.networks import ResNet18, SmallCNN

SHAPE = (3, 9, 13)
NETWORKS = [SmallCNN, ResNet18]


def network(cls, shape=SHAPE, **options):
    torch.manual_seed(0)
    return cls(shape, 5, width=4, **options)


@pytest.mark.parametrize("cls", NETWORKS)
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (9, 13), (64, 40), (100, 100)])
def test_logits_are_the_last_layer_of_the_features(cls, size):
    net = network(cls, (3, *size)).eval()
    images = torch.randn(2, 3, *size)
    features = net.features(images)
    assert features.shape == (2, net.num_features)
    torch.testing.assert_close(net(images), features @ net.head.weight.T + net.head.bias)
    assert (net.image_shape, net.num_classes) == ((3, *size), 5)


@pytest.mark.parametrize("cls", NETWORKS)
def test_every_parameter_and_every_pixel_gets_a_gradient(cls):
    net = network(cls)
    images = torch.randn(6, *SHAPE).requires_grad_()
    (net(images) * torch.randn(6, 5)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    assert images.grad.abs().sum((0, 1)).min() > 0  # the rim of an odd side, too


@pytest.mark.parametrize("cls", NETWORKS)
def test_in_evaluation_an_image_is_judged_by_itself(cls):
    net = network(cls).eval()
    images = torch.randn(4, *SHAPE)
    torch.testing.assert_close(net(images)[:1], net(images[:1]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cls", NETWORKS)
def test_a_network_can_be_rebuilt_from_its_description(cls):
    net = network(cls).eval()
    description = json.loads(json.dumps(describe(net)))
    assert description["class_path"] == f"imgsynth.networks.{cls.__name__}"
    again = build(description).eval()
    again.load_state_dict(net.state_dict())
    images = torch.randn(2, *SHAPE)
    assert torch.equal(net(images), again(images))


def test_no_feature_of_real_digits_is_dead(digits):
    torch.manual_seed(0)
    net = SmallCNN(digits.image_shape, 10)
    images = torch.cat([images for images, _ in digits.reference("test")]).float() / 127.5 - 1
    with torch.no_grad():
        features = net.features(images)
    assert features.std(0).min() > 0.01


@pytest.mark.parametrize("small_stem", [None, False])
def test_the_residual_network_of_large_images_is_torchvisions(small_stem):
    torch.manual_seed(0)
    ours = ResNet18((3, 96, 72), 10, small_stem=small_stem).eval()
    theirs = models.resnet18(num_classes=10).eval()
    values = list(ours.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    images = torch.randn(2, 3, 96, 72)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_the_small_stem_is_for_images_up_to_64_pixels_unless_told():
    def stem(net):
        return net.layers[0].kernel_size, any(isinstance(m, nn.MaxPool2d) for m in net.modules())

    assert stem(network(ResNet18, (1, 64, 64))) == ((3, 3), False)
    assert stem(network(ResNet18, (1, 65, 65))) == ((7, 7), True)
    assert stem(network(ResNet18, (1, 65, 65), small_stem=True)) == ((3, 3), False)


def test_the_small_network_ends_on_a_map_of_four_to_seven_pixels():
    for side in (8, 9, 13, 16, 28, 32, 63, 64):
        with torch.no_grad():
            maps = network(SmallCNN, (3, side, side)).layers(torch.zeros(1, 3, side, side))
        assert 4 <= maps.shape[-1] <= 7


@pytest.mark.parametrize("cls", NETWORKS)
def test_what_cannot_be_built_is_explained(cls):
    name = cls.__name__
    with pytest.raises(ValueError, match=f"{name} needs the size of its images"):
        cls()
    with pytest.raises(ValueError, match=f"{name} needs images of at least 8x8 pixels, got 8x7"):
        cls((1, 8, 7), 3)
    for classes in (None, 0, 1):
        with pytest.raises(
            ValueError, match=f"at least 2 classes apart, got num_classes={classes}"
        ):
            cls((1, 8, 8), classes)
    with pytest.raises(ValueError, match=f"{name} was built for images of shape"):
        network(cls)(torch.zeros(2, 3, 13, 9))


def test_the_large_stem_needs_larger_images():
    with pytest.raises(ValueError, match="at least 32x32 pixels, got 31x40"):
        ResNet18((3, 31, 40), 5, small_stem=False)
