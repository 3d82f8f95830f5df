"""Class conditions, spectral normalisation and the checks the networks share."""

import pytest
import torch
from torch import nn

from imgsynth.networks.blocks import (
    ConditionalLatent,
    ProjectionHead,
    known_classes,
    known_shape,
    spectrally_normalised,
)


def test_an_unconditional_latent_passes_through():
    z = torch.randn(3, 4)
    block = ConditionalLatent(4, 0, 7)
    assert block(z) is z
    assert block.out_features == 4
    assert not list(block.parameters())


def test_a_conditional_latent_is_followed_by_the_classes_own_vector():
    block = ConditionalLatent(4, 3, 2)
    z, labels = torch.randn(5, 4), torch.tensor([2, 0, 1, 1, 2])
    result = block(z, labels)
    assert result.shape == (5, block.out_features)
    assert torch.equal(result[:, :4], z)
    for row, label in zip(result[:, 4:], labels.tolist(), strict=True):
        assert torch.equal(row, block.embedding.weight[label])


def test_the_projection_head_is_the_papers_equation():
    head = ProjectionHead(6, 3)
    features, labels = torch.randn(4, 6), torch.tensor([1, 0, 2, 2])
    weight, bias = head.linear.weight[0], head.linear.bias[0]
    expected = [
        features[i] @ weight + bias + features[i] @ head.embedding.weight[labels[i]]
        for i in range(4)
    ]
    torch.testing.assert_close(head(features, labels), torch.stack(expected))


def test_an_unconditional_head_is_linear():
    head, features = ProjectionHead(6, 0), torch.randn(4, 6)
    torch.testing.assert_close(head(features), head.linear(features)[:, 0])
    assert sum(p.numel() for p in head.parameters()) == 7


@pytest.mark.parametrize("make", [lambda: nn.Linear(20, 8), lambda: nn.Embedding(8, 20)])
def test_spectral_normalisation_divides_by_the_largest_singular_value(make):
    torch.manual_seed(0)
    layer = make()
    largest = torch.linalg.matrix_norm(layer.weight.detach(), 2)
    expected = layer.weight.detach() / largest
    normalised = spectrally_normalised(layer)
    for _ in range(200):  # one power iteration each
        _ = normalised.weight
    torch.testing.assert_close(normalised.weight, expected, rtol=1e-3, atol=1e-4)


def test_a_layer_is_returned_as_it_is_if_not_enabled():
    layer = nn.Linear(2, 2)
    assert spectrally_normalised(layer, enabled=False) is layer
    assert "weight" in dict(layer.named_parameters())


BLOCKS = [
    (ConditionalLatent(4, 3, 2), torch.zeros(5, 4)),
    (ProjectionHead(4, 3), torch.zeros(5, 4)),
    (ProjectionHead(4, 3, spectral_norm=True), torch.zeros(5, 4)),
]


@pytest.mark.parametrize(("block", "argument"), BLOCKS)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "conditional on 3 classes and needs labels"),
        (torch.zeros(5), r"expected int64 of shape \(5,\), got torch.float32 of shape \(5,\)"),
        (torch.zeros(4, dtype=torch.int64), r"of shape \(5,\), got torch.int64 of shape \(4,\)"),
        (torch.zeros(5, 1, dtype=torch.int64), r"got torch.int64 of shape \(5, 1\)"),
        (torch.tensor([0, 1, 2, 3, 0]), "expected 0 to 2, got 0 to 3"),
        (torch.tensor([0, -1, 2, 1, 0]), "expected 0 to 2, got -1 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_named(block, argument, labels, message):
    with pytest.raises(ValueError, match=message):
        block(argument, labels)


@pytest.mark.parametrize("block", [ConditionalLatent(4, 0, 2), ProjectionHead(4, 0)])
def test_labels_nobody_asked_for_are_refused(block):
    with pytest.raises(ValueError, match="unconditional but was given labels"):
        block(torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(5, 3), (4,), (5, 4, 1)])
def test_latents_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match=r"latents: expected shape \(B, 4\), got"):
        ConditionalLatent(4, 0, 2)(torch.zeros(shape))


def test_a_shape_nobody_filled_in_says_what_to_pass():
    with pytest.raises(ValueError, match=r"Net needs .* image_shape=data.image_shape"):
        known_shape(None, "Net")


@pytest.mark.parametrize("shape", [(8, 8), (1, 0, 8), (1, 8.0, 8), (1, 8, 8, 8)])
def test_a_shape_that_is_none_is_refused(shape):
    with pytest.raises(ValueError, match="three positive whole numbers"):
        known_shape(shape, "Net")


def test_a_shape_from_a_yaml_file_may_be_a_list():
    assert known_shape([3, 8, 8], "Net") == (3, 8, 8)


def test_no_classes_means_unconditional_and_fewer_are_refused():
    assert [known_classes(n, "Net") for n in (None, 0, 5)] == [0, 0, 5]
    with pytest.raises(ValueError, match="got -1"):
        known_classes(-1, "Net")
