"""The encoder and decoder of VQ-VAE: sizes, the paper's layers, gradients, errors."""

import pytest
import torch
from torch import nn

from imgsynth.describe import build, describe
from imgsynth.networks.spatial import SpatialDecoder, SpatialEncoder

KINDS = [SpatialEncoder, SpatialDecoder]


@pytest.mark.parametrize(
    ("size", "downsamplings", "places"),
    [
        ((8, 8), 1, (4, 4)),
        ((8, 8), 2, (2, 2)),
        ((28, 28), 2, (7, 7)),
        ((32, 48), 3, (4, 6)),
        ((128, 128), 4, (8, 8)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_maps_of_codes_and_images_again(channels, size, downsamplings, places):
    options = {"code_dim": 3, "downsamplings": downsamplings, "width": 4}
    encoder = SpatialEncoder((channels, *size), **options)
    decoder = SpatialDecoder((channels, *size), **options)
    codes = encoder(torch.randn(2, channels, *size))
    assert codes.shape == (2, 3, *places)
    assert encoder.code_shape == decoder.code_shape == (3, *places)
    outputs = decoder(1e5 * codes.sign())
    assert outputs.shape == (2, channels, *size)
    assert outputs.abs().max() > 1  # raw: no activation bounds them


def _weights(network):
    kinds = nn.Conv2d | nn.ConvTranspose2d
    return [
        (type(m).__name__, m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0])
        for m in network.modules()
        if isinstance(m, kinds)
    ]


def test_the_defaults_are_the_layers_of_the_papers_section():
    block = [("Conv2d", 256, 256, 3, 1), ("Conv2d", 256, 256, 1, 1)]
    assert _weights(SpatialEncoder((3, 32, 32))) == [
        ("Conv2d", 3, 256, 4, 2),
        ("Conv2d", 256, 256, 4, 2),
        *block,
        *block,
        ("Conv2d", 256, 64, 1, 1),
    ]
    assert _weights(SpatialDecoder((3, 32, 32))) == [
        ("Conv2d", 64, 256, 3, 1),
        *block,
        *block,
        ("ConvTranspose2d", 256, 256, 4, 2),
        ("ConvTranspose2d", 256, 3, 4, 2),
    ]


def test_the_encoder_is_the_papers_stack_of_layers():
    torch.manual_seed(0)
    net = SpatialEncoder((1, 8, 8), code_dim=2, downsamplings=2, width=3, num_res_blocks=1)
    images = torch.randn(2, 1, 8, 8)
    first, second, wide, narrow, last = (m for m in net.modules() if isinstance(m, nn.Conv2d))
    maps = second(first(images).clamp(min=0))
    maps = maps + narrow(wide(maps.clamp(min=0)).clamp(min=0))
    torch.testing.assert_close(net(images), last(maps.clamp(min=0)))


def test_the_decoder_is_the_papers_stack_of_layers():
    torch.manual_seed(0)
    net = SpatialDecoder((1, 8, 8), code_dim=2, downsamplings=2, width=3, num_res_blocks=1)
    codes = torch.randn(2, 2, 2, 2)
    first, wide, narrow = (m for m in net.modules() if isinstance(m, nn.Conv2d))
    up, last = (m for m in net.modules() if isinstance(m, nn.ConvTranspose2d))
    maps = first(codes)
    maps = maps + narrow(wide(maps.clamp(min=0)).clamp(min=0))
    torch.testing.assert_close(net(codes), last(up(maps.clamp(min=0)).clamp(min=0)))


@pytest.mark.parametrize("cls", KINDS)
def test_every_parameter_gets_a_gradient(cls):
    torch.manual_seed(0)
    network = cls((1, 8, 8), code_dim=3, downsamplings=2, width=8)
    shape = (1, 8, 8) if cls is SpatialEncoder else network.code_shape
    inputs = torch.randn(4, *shape).requires_grad_()
    network(inputs).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())
    assert inputs.grad.abs().sum() > 0


@pytest.mark.parametrize("cls", KINDS)
@pytest.mark.parametrize(
    ("size", "downsamplings"), [((8, 8), 0), ((12, 8), 3), ((28, 28), 3), ((7, 8), 1)]
)
def test_a_size_that_cannot_be_halved_so_often_is_refused(cls, size, downsamplings):
    message = (
        rf"{cls.__name__} halves .* {size[0]}x{size[1]} pixels and downsamplings={downsamplings}"
    )
    with pytest.raises(ValueError, match=message):
        cls((1, *size), downsamplings=downsamplings)


@pytest.mark.parametrize("cls", KINDS)
def test_a_missing_image_shape_is_reported_at_construction(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} needs the size of its images"):
        cls()


def test_inputs_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"built for .* \(B, 1, 8, 8\), got \(2, 1, 16, 16\)"):
        SpatialEncoder((1, 8, 8), width=4)(torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match=r"shape \(B, 64, 2, 2\), got \(2, 32, 2, 2\)"):
        SpatialDecoder((1, 8, 8), width=4)(torch.zeros(2, 32, 2, 2))


@pytest.mark.parametrize("cls", KINDS)
def test_a_network_can_be_rebuilt_from_its_description(cls):
    network = cls((1, 8, 8), code_dim=3, downsamplings=1, width=4, num_res_blocks=1)
    again = build(describe(network))
    again.load_state_dict(network.state_dict())
    assert again.code_shape == (3, 4, 4)
