"""Encoders and decoders: references, sizes, conditions, gradients, what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imgsynth.networks.autoencoder import (
    ConvDecoder,
    ConvEncoder,
    MLPDecoder,
    MLPEncoder,
    ResNetDecoder,
    ResNetEncoder,
)
from imgsynth.testing import check_network

ENCODERS = [MLPEncoder, ConvEncoder, ResNetEncoder]
DECODERS = [MLPDecoder, ConvDecoder, ResNetDecoder]
CONVOLUTIONAL = [ConvEncoder, ConvDecoder, ResNetEncoder, ResNetDecoder]
SMALL = {"latent_dim": 3, "width": 4}
FULL = {"full_size_map": True, "group_norm": True}
SIZES = [(8, 8), (28, 28), (32, 32), (16, 24), (56, 32)]


def kind(cls):
    return "encoder" if cls in ENCODERS else "decoder"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("channels", "classes"), [(1, 0), (3, 3)])
@pytest.mark.parametrize("cls", ENCODERS + DECODERS)
def test_the_contract_is_kept_at_any_size(cls, channels, classes, size):
    check_network(lambda: cls((channels, *size), classes, **SMALL), kind=kind(cls))


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (MLPEncoder, {"depth": 0}),
        (MLPDecoder, {"depth": 0}),
        (MLPEncoder, {"depth": 3}),
        (MLPDecoder, {"depth": 3}),
        (ConvEncoder, {**FULL, "max_width": 8, "start": 2}),
        (ConvDecoder, {**FULL, "max_width": 8, "start": 2}),
        (ResNetEncoder, {"num_blocks": 2, "max_width": 8, "start": 2}),
        (ResNetDecoder, {"num_blocks": 2, "max_width": 8, "start": 2}),
    ],
)
def test_the_contract_is_kept_with_every_option(cls, options):
    check_network(lambda: cls((1, 8, 8), 2, class_dim=5, **SMALL, **options), kind=kind(cls))


@pytest.mark.parametrize(("encoder", "decoder"), list(zip(ENCODERS, DECODERS, strict=True))[1:])
@pytest.mark.parametrize("size", [(48, 48), (64, 96), (128, 128), (256, 256)])
def test_large_images_are_encoded_and_decoded(encoder, decoder, size):
    options = {"latent_dim": 3, "width": 2, "max_width": 8}
    with torch.no_grad():
        mu, logvar = encoder((3, *size), **options)(torch.zeros(1, 3, *size))
        outputs = decoder((3, *size), **options)(mu)
    assert (mu.shape, logvar.shape, outputs.shape) == ((1, 3), (1, 3), (1, 3, *size))


class Reference(nn.Module):
    """The VAE that pythae 0.1.2 builds where it is given no networks; images in [0, 1]."""

    def __init__(self, pixels, latent_dim):
        super().__init__()
        self.first = nn.Linear(pixels, 512)
        self.embedding = nn.Linear(512, latent_dim)
        self.log_var = nn.Linear(512, latent_dim)
        self.hidden = nn.Linear(latent_dim, 512)
        self.last = nn.Linear(512, pixels)

    def encode(self, images):
        hidden = torch.relu(self.first(images.flatten(1)))
        return self.embedding(hidden), self.log_var(hidden)

    def decode(self, z, shape):
        return torch.sigmoid(self.last(torch.relu(self.hidden(z)))).reshape(-1, *shape)


def with_the_weights_of(reference, shape, latent_dim):
    encoder, decoder = (cls(shape, latent_dim=latent_dim) for cls in (MLPEncoder, MLPDecoder))
    first, heads = reference.first, (reference.embedding, reference.log_var)
    weights = [
        first.weight / 2,
        first.bias + first.weight.sum(1) / 2,
        torch.cat([head.weight for head in heads]),
        torch.cat([head.bias for head in heads]),
    ]
    encoder.load_state_dict(dict(zip(encoder.state_dict(), weights, strict=True)))
    rest = [*reference.hidden.state_dict().values(), *reference.last.state_dict().values()]
    decoder.load_state_dict(dict(zip(decoder.state_dict(), rest, strict=True)))
    return encoder, decoder


def test_the_defaults_compute_what_the_default_networks_of_pythae_do():
    torch.manual_seed(0)
    shape = (1, 28, 28)
    reference = Reference(28 * 28, 16)
    encoder, decoder = with_the_weights_of(reference, shape, 16)
    images = torch.rand(5, *shape)
    mu, logvar = encoder(2 * images - 1)
    theirs_mu, theirs_logvar = reference.encode(images)
    torch.testing.assert_close(mu, theirs_mu, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logvar, theirs_logvar, atol=1e-5, rtol=1e-4)
    z = torch.randn(5, 16)
    torch.testing.assert_close(decoder(z).sigmoid(), reference.decode(z, shape))


def test_the_defaults_start_as_pytorchs_linear_layers_do():
    torch.manual_seed(0)
    decoder = MLPDecoder((1, 8, 8), latent_dim=16)
    torch.manual_seed(0)
    expected = [nn.Linear(16, 512), nn.Linear(512, 64)]
    ours = [m for m in decoder.modules() if isinstance(m, nn.Linear)]
    for layer, other in zip(ours, expected, strict=True):
        assert torch.equal(layer.weight, other.weight)
        assert torch.equal(layer.bias, other.bias)
    torch.manual_seed(0)
    encoder = MLPEncoder((1, 8, 8), latent_dim=16)
    torch.manual_seed(0)
    assert torch.equal(encoder.layers[1].weight, nn.Linear(64, 512).weight)
    heads, bound = encoder.heads.weight, 512**-0.5  # one layer or two: the same distribution
    assert heads.abs().max() <= bound
    assert heads.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def _norm(maps, layer):
    """Group normalisation from its definition."""
    num, channels, *size = maps.shape
    grouped = maps.reshape(num, layer.num_groups, -1)
    mean, var = grouped.mean(2, keepdim=True), grouped.var(2, correction=0, keepdim=True)
    normal = ((grouped - mean) / (var + 1e-5).sqrt()).reshape(num, channels, *size)
    return normal * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)


class Norms:
    """A network's normalisations, one after the other; none leaves the maps as they are."""

    def __init__(self, net):
        self.layers = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
        self.num = 0

    def __len__(self):
        return len(self.layers)

    def __call__(self, maps):
        self.num += 1
        return _norm(maps, self.layers[self.num - 1]) if self.layers else maps


def _leaky(maps):
    return torch.where(maps > 0, maps, 0.2 * maps)


def _silu(maps):
    return maps * torch.sigmoid(maps)


def _twice(maps):
    return maps.repeat_interleave(2, 2).repeat_interleave(2, 3)


def _assert_same_with_gradients(ours, reference, net):
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)
    weight = torch.randn_like(ours)
    expected = torch.autograd.grad((reference * weight).sum(), list(net.parameters()))
    gradients = torch.autograd.grad((ours * weight).sum(), list(net.parameters()))
    torch.testing.assert_close(gradients, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("group_norm", [False, True])
def test_the_convolutional_encoder_is_its_stack_of_layers(group_norm):
    torch.manual_seed(0)
    options = {"full_size_map": True, "group_norm": group_norm}
    net = ConvEncoder((2, 16, 24), latent_dim=3, width=8, **options)
    full, half, quarter = (m for m in net.modules() if isinstance(m, nn.Conv2d))
    norms = Norms(net)
    assert len(norms) == 2 * group_norm  # the first map is never normalised
    images = torch.randn(3, 2, 16, 24)
    maps = _leaky(F.conv2d(images, full.weight, full.bias, padding=1))
    maps = _leaky(norms(F.conv2d(maps, half.weight, half.bias, 2, 1)))
    maps = _leaky(norms(F.conv2d(maps, quarter.weight, quarter.bias, 2, 1)))
    assert maps.shape == (3, 32, 4, 6)
    expected = maps.flatten(1) @ net.heads.weight.T + net.heads.bias
    _assert_same_with_gradients(torch.cat(net(images), 1), expected, net)


@pytest.mark.parametrize("group_norm", [False, True])
@pytest.mark.parametrize("full_size_map", [False, True])
def test_the_convolutional_decoder_doubles_by_nearest_neighbours_before_each_convolution(
    full_size_map, group_norm
):
    torch.manual_seed(0)
    options = {"full_size_map": full_size_map, "group_norm": group_norm}
    net = ConvDecoder((2, 16, 24), latent_dim=3, width=8, **options)
    z = torch.randn(5, 3)
    start, first, *rest = (m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    norms = Norms(net)
    assert len(norms) == group_norm * (1 + full_size_map)
    channels = 32 if full_size_map else 16
    maps = _leaky((z @ start.weight.T + start.bias).view(5, channels, 4, 6))
    maps = F.conv2d(_twice(maps), first.weight, first.bias, padding=1)
    maps = F.conv2d(_twice(_leaky(norms(maps))), rest[0].weight, rest[0].bias, padding=1)
    if full_size_map:
        maps = F.conv2d(_leaky(norms(maps)), rest[1].weight, rest[1].bias, padding=1)
    assert len(rest) == 1 + full_size_map
    _assert_same_with_gradients(net(z), maps, net)


def _layers(net):
    return iter([m for m in net.modules() if isinstance(m, nn.Conv2d | nn.GroupNorm)])


def _branch(maps, layers, first):
    """Twice norm, SiLU, convolution; ``first`` is the first convolution."""
    norm, weights = next(layers), next(layers)
    maps = first(_silu(_norm(maps, norm)), weights)
    norm, weights = next(layers), next(layers)
    return F.conv2d(_silu(_norm(maps, norm)), weights.weight, weights.bias, padding=1)


def test_the_residual_encoder_is_the_papers_pre_activation():
    torch.manual_seed(0)
    net = ResNetEncoder((2, 8, 12), latent_dim=3, width=8, num_blocks=2)
    images = torch.randn(3, 2, 8, 12)
    layers = _layers(net)
    stem = next(layers)
    maps = F.conv2d(images, stem.weight, stem.bias, padding=1)
    skip = next(layers)
    around = F.conv2d(F.avg_pool2d(maps, 2), skip.weight, skip.bias)
    maps = around + _branch(maps, layers, lambda x, c: F.conv2d(x, c.weight, c.bias, 2, 1))
    maps = maps + _branch(maps, layers, lambda x, c: F.conv2d(x, c.weight, c.bias, padding=1))
    maps = _silu(_norm(maps, next(layers)))
    assert maps.shape == (3, 16, 4, 6)
    expected = maps.flatten(1) @ net.heads.weight.T + net.heads.bias
    assert next(layers, None) is None
    _assert_same_with_gradients(torch.cat(net(images), 1), expected, net)


def test_the_residual_decoder_is_the_papers_pre_activation():
    torch.manual_seed(0)
    net = ResNetDecoder((2, 8, 12), latent_dim=3, width=8, num_blocks=2)
    z = torch.randn(3, 3)
    layers = _layers(net)
    start = net.layers[0]
    maps = (z @ start.weight.T + start.bias).view(3, 16, 4, 6)
    skip = next(layers)
    around = _twice(F.conv2d(maps, skip.weight, skip.bias))
    maps = around + _branch(
        maps, layers, lambda x, c: F.conv2d(_twice(x), c.weight, c.bias, padding=1)
    )
    maps = maps + _branch(maps, layers, lambda x, c: F.conv2d(x, c.weight, c.bias, padding=1))
    maps = _silu(_norm(maps, next(layers)))
    last = next(layers)
    expected = F.conv2d(maps, last.weight, last.bias, padding=1)
    assert next(layers, None) is None
    _assert_same_with_gradients(net(z), expected, net)


def _maps(net, argument):
    """Shapes of what the convolutions return, batch left out."""
    shapes = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:])))
    with torch.no_grad():
        net(argument)
    return shapes


def test_maps_halve_down_to_4x4_while_channels_double_up_to_the_most():
    options = {"width": 8, "max_width": 32, "latent_dim": 3}
    down = [(8, 32, 32), (16, 16, 16), (32, 8, 8), (32, 4, 4)]
    encoder = ConvEncoder((3, 64, 64), **options)
    assert _maps(encoder, torch.zeros(2, 3, 64, 64)) == down
    up = _maps(ConvDecoder((3, 64, 64), **options), torch.zeros(2, 3))
    assert up == [*down[-2::-1], (3, 64, 64)]
    full = _maps(ConvDecoder((3, 64, 64), full_size_map=True, **options), torch.zeros(2, 3))
    assert full[-2:] == [(8, 64, 64), (3, 64, 64)]


@pytest.mark.parametrize(
    ("width", "groups"), [(2, 1), (4, 1), (8, 2), (10, 2), (11, 1), (16, 4), (32, 8), (64, 8)]
)
def test_a_group_has_four_channels_or_more_where_there_are_as_many(width, groups):
    net = ResNetDecoder((1, 8, 8), width=width, max_width=width)
    norms = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert {m.num_groups for m in norms} == {groups}


@pytest.mark.parametrize("cls", ENCODERS + DECODERS)
def test_no_image_sees_another_even_in_training(cls):
    torch.manual_seed(0)
    options = {"group_norm": True} if cls in {ConvEncoder, ConvDecoder} else {}
    net = cls((1, 16, 16), **SMALL, **options).train()
    inputs = torch.randn(4, 1, 16, 16) if cls in ENCODERS else torch.randn(4, 3)
    together, alone = (
        torch.cat(out, 1) if isinstance(out := net(x), tuple) else out for x in (inputs, inputs[:1])
    )
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=1e-5)
    assert not list(net.buffers())  # no running statistics either


@pytest.mark.parametrize("cls", ENCODERS)
def test_the_variance_starts_near_one(cls):
    torch.manual_seed(0)
    _, logvar = cls((1, 32, 32))(torch.rand(8, 1, 32, 32).round() * 2 - 1)
    assert logvar.abs().mean() < 0.5
    assert logvar.abs().max() < 2


@pytest.mark.parametrize("cls", ENCODERS + DECODERS)
def test_every_parameter_gets_a_gradient(cls):
    torch.manual_seed(0)
    net = cls((1, 16, 16), 3, latent_dim=4, width=8)
    inputs = torch.randn(6, 1, 16, 16) if cls in ENCODERS else torch.randn(6, 4)
    outputs = net(inputs, torch.arange(6) % 3)
    flat = torch.cat(outputs, 1) if cls in ENCODERS else outputs
    (flat * torch.randn_like(flat)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("cls", ENCODERS + DECODERS)
def test_a_missing_image_shape_is_reported_at_construction(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} needs the size of its images"):
        cls()


@pytest.mark.parametrize("size", [(4, 4), (7, 7), (30, 30), (64, 63)])
@pytest.mark.parametrize("cls", CONVOLUTIONAL)
def test_a_size_that_doubling_cannot_reach_is_refused_with_the_possible_ones(cls, size):
    message = rf"{cls.__name__} cannot .* {size[0]}x{size[1]} pixels .* 8, 16, 28, 32"
    with pytest.raises(ValueError, match=message):
        cls((3, *size))


@pytest.mark.parametrize("cls", ENCODERS)
def test_images_of_another_size_are_named(cls):
    message = rf"{cls.__name__} was built for .* \(B, 1, 8, 16\), got \(2, 1, 16, 8\)"
    with pytest.raises(ValueError, match=message):
        cls((1, 8, 16), **SMALL)(torch.zeros(2, 1, 16, 8))


@pytest.mark.parametrize("cls", DECODERS)
def test_latents_of_another_length_are_named(cls):
    with pytest.raises(ValueError, match=r"latents: expected shape \(B, 3\), got \(2, 4\)"):
        cls((1, 8, 8), **SMALL)(torch.zeros(2, 4))


@pytest.mark.parametrize("cls", ENCODERS + DECODERS)
def test_labels_are_demanded_and_refused_by_the_classes(cls):
    inputs = torch.zeros(2, 1, 8, 8) if cls in ENCODERS else torch.zeros(2, 3)
    with pytest.raises(ValueError, match="conditional on 5 classes and needs labels"):
        cls((1, 8, 8), 5, **SMALL)(inputs)
    with pytest.raises(ValueError, match="unconditional but was given labels"):
        cls((1, 8, 8), **SMALL)(inputs, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="expected 0 to 4, got 0 to 5"):
        cls((1, 8, 8), 5, **SMALL)(inputs, torch.tensor([0, 5]))
