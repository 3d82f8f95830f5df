"""The prior of codes: causality, normalisation, the cache, sampling by inverse distribution."""

import itertools
import math

import pytest
import torch
from torch import nn

from imgsynth.describe import build, describe
from imgsynth.networks.transformer import CodeTransformer


def _prior(num_codes=5, num_tokens=6, num_classes=None, **options):
    """A prior whose weights are far from their small start, so that everything matters."""
    torch.manual_seed(0)
    options = {"width": 16, "depth": 2, "heads": 4, **options}
    prior = CodeTransformer(num_codes, num_tokens, num_classes, **options)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return prior


def _indices(num=3, num_codes=5, num_tokens=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, num_codes, (num, num_tokens), generator=generator)


@pytest.mark.parametrize("place", range(6))
def test_a_code_changes_what_is_expected_after_it_and_nothing_before(place):
    prior, indices = _prior(), _indices()
    other = indices.clone()
    other[:, place] = (other[:, place] + 1) % 5
    before, after = prior(indices), prior(other)
    assert torch.equal(before[:, : place + 1], after[:, : place + 1])
    changed = (before - after).abs().amax((0, 2)) > 1e-4
    assert changed.tolist() == [n > place for n in range(6)]


def test_the_class_changes_what_is_expected_everywhere():
    prior, indices = _prior(num_classes=3), _indices()
    first, second = (prior(indices, torch.full((3,), label)) for label in (0, 2))
    assert ((first - second).abs().amax((0, 2)) > 1e-4).all()


@pytest.mark.parametrize("num_classes", [None, 2])
def test_the_probabilities_of_all_sequences_sum_to_one(num_classes):
    prior = _prior(3, 4, num_classes).double()
    sequences = torch.tensor(list(itertools.product(range(3), repeat=4)))
    labels = None if num_classes is None else torch.ones(81, dtype=torch.int64)
    log_p = prior(sequences, labels).log_softmax(2).gather(2, sequences[..., None]).sum((1, 2))
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_p.std() > 0.1  # not the even distribution, of which it would be no wonder


@pytest.mark.parametrize("num_classes", [None, 3])
def test_a_cached_step_gives_the_logits_of_the_full_pass(num_classes):
    prior, indices = _prior(num_classes=num_classes).eval(), _indices()
    labels = None if num_classes is None else torch.tensor([0, 1, 2])
    with torch.no_grad():
        expected = prior(indices, labels)
        cache = prior.empty_cache(3)
        x = prior._first(labels, 3)
        for place in range(6):
            found = prior.step(x, cache, place)
            torch.testing.assert_close(found, expected[:, place], rtol=1e-4, atol=1e-5)
            x = prior.tokens(indices[:, place])[:, None]


def test_attention_is_that_of_the_formula():
    prior, indices = _prior(depth=1), _indices()
    (block,) = prior.blocks
    tokens = nn.functional.embedding(indices, prior.tokens.weight)
    x = torch.cat([torch.zeros(3, 1, 16), tokens[:, :-1]], 1) + prior.positions
    q, k, v = block.to_qkv(block.norm_attention(x)).split(16, 2)
    heads = []
    for n in range(0, 16, 4):
        scores = q[..., n : n + 4] @ k[..., n : n + 4].mT / 2  # the root of 4
        later = torch.arange(6)[None, :] > torch.arange(6)[:, None]
        weights = scores.masked_fill(later, -math.inf).softmax(2)
        heads.append(weights @ v[..., n : n + 4])
    x = x + block.project(torch.cat(heads, 2))
    x = x + block.contract(nn.functional.gelu(block.expand(block.norm_mlp(x))))
    expected = prior.norm(x) @ prior.head.weight.T
    torch.testing.assert_close(prior(indices), expected, rtol=1e-4, atol=1e-5)


def test_sampling_is_the_inverse_of_the_cumulative_distribution():
    prior = _prior(3, 2).eval()
    p = prior(torch.tensor([[c, 0] for c in range(3)])).softmax(2).detach()
    first = p[0, 0].cumsum(0)
    for u, v in itertools.product([0.0, 0.1, 0.35, 0.6, 0.85, 0.999999], repeat=2):
        code = int((first <= u).sum())
        then = int((p[code, 1].cumsum(0) <= v).sum())
        assert prior.sample(torch.tensor([[u, v]])).tolist() == [[code, min(then, 2)]]


@pytest.mark.parametrize("num_classes", [None, 2])
def test_sampled_sequences_are_as_frequent_as_their_probability(num_classes):
    prior = _prior(3, 3, num_classes).eval()
    sequences = torch.tensor(list(itertools.product(range(3), repeat=3)))
    num = 40_000
    labels = None if num_classes is None else torch.ones(num, dtype=torch.int64)
    with torch.no_grad():
        logits = prior(sequences, None if labels is None else labels[:27])
    p = logits.log_softmax(2).gather(2, sequences[..., None]).sum((1, 2)).exp()
    uniforms = torch.rand(num, 3, generator=torch.Generator().manual_seed(2))
    drawn = prior.sample(uniforms, labels) @ torch.tensor([9, 3, 1])
    counts = torch.bincount(drawn, minlength=27)
    chi_squared = ((counts - num * p) ** 2 / (num * p)).sum().item()
    assert chi_squared < 26 + 5 * math.sqrt(2 * 26)  # 26 degrees of freedom


def test_a_sequence_depends_on_its_own_uniforms_alone():
    prior = _prior().eval()
    uniforms = torch.rand(8, 6, generator=torch.Generator().manual_seed(3))
    together = prior.sample(uniforms)
    alone = torch.cat([prior.sample(row[None]) for row in uniforms])
    assert torch.equal(together, alone)
    assert len(together.unique(dim=0)) > 4


def test_a_uniform_that_rounding_puts_at_one_still_gives_a_code():
    drawn = _prior().eval().sample(torch.ones(2, 6))
    assert drawn.max() <= 4


def test_a_code_of_no_probability_is_never_drawn():
    prior = _prior().eval()
    with torch.no_grad():
        prior.norm.weight.zero_()
        prior.norm.bias.fill_(1.0)
        prior.head.weight.zero_()
        prior.head.weight[0] = -100.0  # a logit of -1600
    assert prior.sample(torch.zeros(1, 6)).tolist() == [[1] * 6]


def test_a_map_of_one_place_needs_no_code_before():
    prior = _prior(5, 1).eval()
    assert prior(torch.tensor([[3]])).shape == (1, 1, 5)
    assert prior.sample(torch.rand(4, 1)).shape == (4, 1)
    assert prior.tokens is None


def test_dropout_acts_in_training_only():
    prior, indices = _prior(dropout=0.5), _indices()
    assert not torch.equal(prior(indices), prior(indices))
    prior.eval()
    assert torch.equal(prior(indices), prior(indices))


def test_every_parameter_gets_a_gradient():
    prior = _prior(num_classes=3)
    prior(_indices(), torch.tensor([0, 1, 2])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in prior.parameters())


def test_an_untrained_prior_expects_all_codes_nearly_alike():
    torch.manual_seed(0)
    prior = CodeTransformer(5, 6, width=64, depth=4, heads=4)
    entropy = nn.functional.cross_entropy(prior(_indices()).flatten(0, 1), _indices().flatten())
    assert entropy.item() == pytest.approx(math.log(5), abs=0.1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "needs num_codes .* and num_tokens .* got None and None"),
        ({"num_codes": 5}, "got 5 and None"),
        ({"num_codes": 5, "num_tokens": 0}, "got 5 and 0"),
        ({"num_codes": 5, "num_tokens": 4, "width": 10, "heads": 4}, "heads must divide width"),
        ({"num_codes": 5, "num_tokens": 4, "dropout": 1.0}, "below 1, got 1.0"),
        ({"num_codes": 5, "num_tokens": 4, "num_classes": -1}, "num_classes must be 0"),
    ],
)
def test_a_prior_of_impossible_numbers_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        CodeTransformer(**options)


def test_shapes_and_labels_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"built for \(B, 6\) indices, got \(3, 4\)"):
        _prior()(_indices(num_tokens=4))
    with pytest.raises(ValueError, match=r"uniforms of shape \(B, 6\), got \(2, 5\)"):
        _prior().sample(torch.rand(2, 5))
    with pytest.raises(ValueError, match="unconditional but was given labels"):
        _prior()(_indices(), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="conditional on 2 classes and needs labels"):
        _prior(num_classes=2).sample(torch.rand(2, 6))


def test_a_prior_can_be_rebuilt_from_its_description():
    prior = _prior(num_classes=2).eval()
    again = build(describe(prior)).eval()
    again.load_state_dict(prior.state_dict())
    labels = torch.tensor([0, 1, 1])
    assert torch.equal(again(_indices(), labels), prior(_indices(), labels))
