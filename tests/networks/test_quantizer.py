"""Quantisers against their papers: gradients, the codebook's averages, restarts, grids."""

import math

import numpy as np
import pytest
import torch
from ranks import together
from torch.nn import functional as F

from imgsynth.describe import build, describe
from imgsynth.networks.quantizer import FiniteScalarQuantizer, VectorQuantizer

BOTH = [
    lambda: VectorQuantizer(12, 3, restart_below=0),
    lambda: FiniteScalarQuantizer((4, 3, 5)),
]


def _features(seed=0, shape=(4, 3, 5, 2), scale=2.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _vectors(features):
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


# -- both -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", BOTH)
def test_the_codes_are_those_of_the_indices_to_the_bit(make):
    torch.manual_seed(0)
    quantizer = make().eval()
    codes, indices, _ = quantizer(_features())
    assert codes.shape == (4, 3, 5, 2)
    assert indices.shape == (4, 5, 2)
    assert indices.dtype == torch.int64
    assert torch.equal(quantizer.codes(indices), codes)


@pytest.mark.parametrize("make", BOTH)
def test_the_figures_of_use_are_the_batchs(make):
    quantizer = make().eval()
    _, indices, figures = quantizer(_features())
    p = np.bincount(indices.flatten().numpy(), minlength=quantizer.num_codes) / 40
    entropy = -sum(q * math.log(q) for q in p if q)
    assert figures["perplexity"].item() == pytest.approx(math.exp(entropy), rel=1e-5)
    assert figures["usage"].item() == pytest.approx((p > 0).mean())


def test_perplexity_is_one_for_one_code_and_their_number_for_even_use():
    quantizer = VectorQuantizer(8, 2)
    single = quantizer.figures(torch.tensor([0.0, 7, 0, 0, 0, 0, 0, 0]))
    assert (single["perplexity"].item(), single["usage"].item()) == (1.0, 0.125)
    even = quantizer.figures(torch.full((8,), 3.0))
    assert even["perplexity"].item() == pytest.approx(8, rel=1e-6)
    assert even["usage"].item() == 1.0


@pytest.mark.parametrize("make", BOTH)
def test_features_of_another_size_are_named(make):
    with pytest.raises(ValueError, match=r"shape \(B, 3, h, w\), got \(4, 2, 5, 2\); .*code_dim=3"):
        make()(_features(shape=(4, 2, 5, 2)))


@pytest.mark.parametrize("make", BOTH)
def test_under_mixed_precision_choices_are_made_in_float32(make):
    torch.manual_seed(0)
    quantizer = make().eval()
    features = _features(shape=(64, 3, 5, 5))
    _, expected, _ = quantizer(features)
    with torch.autocast("cpu", torch.bfloat16):
        codes, indices, _ = quantizer(features)
        half, *_ = quantizer(features.bfloat16())
    assert torch.equal(indices, expected)
    assert codes.dtype == torch.float32
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("make", [lambda: VectorQuantizer(6, 2, 0.9, 0.1), BOTH[1]])
def test_a_quantiser_can_be_rebuilt_from_its_description(make):
    quantizer = make()
    again = build(describe(quantizer), trusted=("imgsynth",))
    again.load_state_dict(quantizer.state_dict())
    features = _features(shape=(2, quantizer.code_dim, 3, 3))
    again.eval(), quantizer.eval()
    assert torch.equal(again(features)[1], quantizer(features)[1])


# -- the codebook ---------------------------------------------------------------------------------


def test_each_vector_gets_the_nearest_code():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(12, 3).eval()
    features = _features(scale=0.7)
    _, indices, _ = quantizer(features)
    difference = features[:, None] - quantizer.codebook.view(1, 12, 3, 1, 1)
    assert torch.equal(indices, difference.square().sum(2).argmin(1))


def test_the_gradient_of_the_codes_arrives_at_the_features_unchanged():
    quantizer = VectorQuantizer(12, 3)
    features = _features().requires_grad_()
    codes, _, _ = quantizer(features)
    gradient = _features(1)
    codes.backward(gradient)
    assert torch.equal(features.grad, gradient)
    assert not list(quantizer.parameters())


def test_the_commitment_is_the_mean_square_distance_and_moves_the_features_alone():
    quantizer = VectorQuantizer(12, 3).eval()
    features = _features().requires_grad_()
    codes, _, figures = quantizer(features)
    expected = np.mean((features - codes).detach().numpy() ** 2)
    assert figures["commitment"].item() == pytest.approx(expected, rel=1e-5)
    figures["commitment"].backward()
    torch.testing.assert_close(features.grad, 2 * (features - codes).detach() / features.numel())


def test_the_codebook_follows_as_in_the_papers_appendix():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(5, 3, decay=0.8, restart_below=0)
    e = quantizer.codebook.double().numpy()
    counts, sums = np.ones(5), e.copy()
    for seed in range(6):
        features = _features(seed)
        codes, indices, figures = quantizer(features)
        z = features.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
        chosen = ((z[:, None] - e) ** 2).sum(2).argmin(1)
        assert np.array_equal(indices.flatten(), chosen)
        quantised = codes.permute(0, 2, 3, 1).reshape(-1, 3)
        np.testing.assert_allclose(quantised, e[chosen], rtol=1e-5)  # of before the update
        for i in range(5):
            mine = z[chosen == i]
            counts[i] = 0.8 * counts[i] + 0.2 * len(mine)
            sums[i] = 0.8 * sums[i] + 0.2 * mine.sum(0)
        smooth = (counts + 1e-5) / (counts.sum() + 5e-5) * counts.sum()
        e = sums / smooth[:, None]
        np.testing.assert_allclose(quantizer.codebook, e, rtol=1e-4, atol=1e-6)
        assert figures["usage"].item() == pytest.approx(len(np.unique(chosen)) / 5)


def test_in_evaluation_nothing_of_the_codebook_changes():
    quantizer = VectorQuantizer(5, 3).eval()
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantizer(_features())
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())


def test_at_the_first_batch_all_codes_start_at_vectors_of_it():
    quantizer = VectorQuantizer(6, 3, decay=0.0)
    features = 100 + _features()
    _, indices, _ = quantizer(features)
    assert len(indices.unique()) > 1
    assert quantizer.started
    # of decay 0 each code that was chosen is the mean of its vectors: among them, not at length 1
    chosen = quantizer.codebook[indices.unique()]
    assert (chosen - 100).abs().max() < 10


def test_a_dead_code_starts_again_at_a_vector_of_the_batch_and_the_living_stay():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 2, decay=0.99, restart_below=0.5)
    quantizer.started.fill_(True)
    quantizer.codebook.copy_(torch.tensor([[0.0, 0], [1, 1], [50, 50], [60, 60]]))
    quantizer.counts.copy_(torch.tensor([4.0, 4.0, 0.1, 0.9]))  # mean 2.25: dead below 1.125
    quantizer.sums.copy_(quantizer.codebook * quantizer.counts[:, None])
    features = torch.rand(3, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    vectors = _vectors(features)
    quantizer._restart(vectors)
    for code in (2, 3):
        assert (vectors == quantizer.codebook[code]).all(1).any()
        torch.testing.assert_close(quantizer.sums[code], 2.25 * quantizer.codebook[code])
    assert torch.equal(quantizer.codebook[:2], torch.tensor([[0.0, 0], [1, 1]]))
    assert quantizer.counts.tolist() == pytest.approx([4, 4, 2.25, 2.25])


def test_restarts_bring_codes_that_nobody_chose_into_use():
    usage = {}
    for restart_below in (0.0, 0.05):
        torch.manual_seed(0)
        quantizer = VectorQuantizer(32, 3, decay=0.9, restart_below=restart_below)
        for seed in range(60):
            _, _, figures = quantizer(20 + _features(seed, (16, 3, 4, 4)))
        usage[restart_below] = figures["usage"].item()
    assert usage[0.0] < 0.1
    assert usage[0.05] > 0.9


def test_without_restarts_no_random_number_is_drawn():
    quantizer = VectorQuantizer(4, 3, restart_below=0)
    state = torch.default_generator.get_state()
    quantizer(_features())
    assert torch.equal(torch.default_generator.get_state(), state)


def test_the_codebook_stays_float32_where_the_rest_becomes_half():
    quantizer = VectorQuantizer(4, 3).bfloat16()
    assert {b.dtype for b in quantizer.buffers()} == {torch.float32, torch.bool}
    codes, _, _ = quantizer(_features().bfloat16())
    assert codes.dtype == torch.bfloat16


def on_ranks(restart_below):
    """Update as one of two ranks, each with its own half of the vectors."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 3, decay=0.7, restart_below=restart_below)
    for seed in range(5):
        torch.manual_seed(100 * torch.distributed.get_rank() + seed)
        half = _features(seed)[torch.distributed.get_rank() :: 2]
        _, _, figures = quantizer(half)
    return {**quantizer.state_dict(), "perplexity": figures["perplexity"]}


@pytest.mark.ddp
@pytest.mark.xdist_group("ddp")
def test_two_ranks_keep_one_codebook_that_of_the_joined_batch(tmp_path):
    first, second = together(tmp_path, on_ranks, 0.0)
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 3, decay=0.7, restart_below=0.0)
    for seed in range(5):
        _, _, figures = quantizer(_features(seed))
    one = {**quantizer.state_dict(), "perplexity": figures["perplexity"]}
    for key, value in one.items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], value)


def starting():
    """Start all codes as one of two ranks."""
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    quantizer = VectorQuantizer(16, 3)
    quantizer._restart(_vectors(_features()[rank::2]))
    return quantizer.codebook


@pytest.mark.ddp
@pytest.mark.xdist_group("ddp")
def test_two_ranks_take_turns_in_starting_codes_and_stay_equal(tmp_path):
    first, second = together(tmp_path / "start", starting)
    assert torch.equal(first, second)
    for code, vector in enumerate(first):
        own = _vectors(_features()[code % 2 :: 2])
        assert (own == vector).all(1).any()
    first, second = together(tmp_path / "go on", on_ranks, 0.5)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_codes": 1}, "num_codes must be at least 2 .* got 1 and 64"),
        ({"code_dim": 0}, "code_dim at least 1, got 512 and 0"),
        ({"decay": 1.0}, "below 1, got 1.0 and 0.05"),
        ({"restart_below": -0.1}, "below 1, got 0.99 and -0.1"),
    ],
)
def test_a_codebook_of_impossible_numbers_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        VectorQuantizer(**options)


# -- finite scalars -------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(2,), (3, 2), (8, 5, 5, 5), (7, 6)])
def test_indices_and_codes_are_a_bijection_onto_the_grid(levels):
    quantizer = FiniteScalarQuantizer(levels)
    assert quantizer.num_codes == math.prod(levels)
    indices = torch.arange(quantizer.num_codes).view(1, -1, 1)
    codes = quantizer.codes(indices)
    vectors = codes[0, :, :, 0].T
    assert len(vectors.unique(dim=0)) == quantizer.num_codes
    for column, level in zip(vectors.T, levels, strict=True):
        half = level // 2
        grid = (np.arange(level) - half) / half  # even: -1 to one step below 1
        np.testing.assert_allclose(column.unique(), grid, rtol=1e-6)
    # the features that bound to a code lead back to its index
    bounded = vectors * (torch.tensor(levels) // 2)
    half = (torch.tensor(levels) - 1) * 0.999 / 2
    offset = torch.where(torch.tensor(levels) % 2 == 0, 0.5, 0.0)
    inside = ((bounded + offset) / half).clamp(-1 + 1e-4, 1 - 1e-4)
    features = torch.atanh(inside) - torch.tan(offset / half)
    assert torch.equal(quantizer(features.T[None, :, :, None])[1], indices)


def test_rounding_is_that_of_the_papers_appendix():
    levels = np.array([8, 5, 4])
    features = _features(shape=(6, 3, 4, 4))
    z = features.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    half_l = (levels - 1) * (1 - 1e-3) / 2
    offset = np.where(levels % 2 == 1, 0.0, 0.5)
    shift = np.tan(offset / half_l)
    bounded = np.tanh(z + shift) * half_l - offset
    quantized = np.round(bounded) / (levels // 2)
    basis = np.concatenate(([1], np.cumprod(levels[:-1])))
    indices = ((quantized * (levels // 2) + levels // 2) * basis).sum(1).round()
    codes, found, figures = FiniteScalarQuantizer((8, 5, 4))(features)
    np.testing.assert_allclose(codes.permute(0, 2, 3, 1).reshape(-1, 3), quantized, rtol=1e-6)
    assert np.array_equal(found.flatten(), indices)
    assert set(figures) == {"perplexity", "usage"}


def test_the_gradient_is_that_of_the_bound_as_if_nothing_were_rounded():
    features = _features(shape=(2, 1, 2, 2)).requires_grad_()
    codes, _, _ = FiniteScalarQuantizer((5,))(features)
    codes.sum().backward()
    half = 4 * (1 - 1e-3) / 2
    expected = (1 - torch.tanh(features.detach()) ** 2) * half / 2
    torch.testing.assert_close(features.grad, expected)


@pytest.mark.parametrize("levels", [(), (5, 1)])
def test_levels_that_are_none_are_refused(levels):
    with pytest.raises(ValueError, match="whole numbers of at least 2, one a coordinate"):
        FiniteScalarQuantizer(levels)


# -- collapse -------------------------------------------------------------------------------------


def _collapse(quantizer, features):
    quantizer.eval()
    indices = quantizer(features)[1]
    return quantizer.collapse(features, quantizer.count(indices))


def test_a_codebook_in_use_is_no_collapse():
    features = _features(shape=(16, 3, 4, 4))
    quantizer = VectorQuantizer(16, 3)
    quantizer(features)
    assert _collapse(quantizer, features) is None
    assert _collapse(FiniteScalarQuantizer((4, 3, 3)), features) is None


def test_codes_far_from_the_features_are_measured():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 3, restart_below=0)
    quantizer.codebook[1:] += 100
    message = _collapse(quantizer, 0.1 * _features(shape=(16, 3, 4, 4)))
    assert message.startswith("Only 1 of 16 codes are in use (perplexity 1.0): the others are far")
    away = 100 * math.sqrt(3)
    assert f"{away:.2g}" in message
    assert "restart_below=0.05" in message
    quantizer.restart_below = 0.05
    assert "Raise restart_below" in _collapse(quantizer, 0.1 * _features(shape=(16, 3, 4, 4)))


@pytest.mark.parametrize("make", BOTH)
def test_features_that_are_the_same_everywhere_are_named(make):
    message = _collapse(make(), torch.ones(16, 3, 4, 4) + 1e-4 * _features(shape=(16, 3, 4, 4)))
    assert "the encoder's outputs hardly vary" in message
    assert "one code serves all" in message


def test_features_beyond_the_bound_are_named():
    features = 50 * _features(shape=(64, 3, 4, 4)).sign()
    message = _collapse(FiniteScalarQuantizer((8, 8, 8)), features)
    assert message.startswith("Only 8 of 512 codes are in use (perplexity")
    assert "100% of the encoder's outputs are beyond 3" in message


@pytest.mark.parametrize(
    ("restart_below", "says"), [(0.0, "restarts are off"), (0.05, "few groups")]
)
def test_a_few_groups_of_features_are_told_from_codes_far_away(restart_below, says):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(64, 3, restart_below=restart_below)
    two = F.pad(torch.randint(0, 2, (64, 1, 4, 4)).float(), (0, 0, 0, 0, 0, 2))
    message = _collapse(quantizer, two)
    assert message.startswith("Only 2 of 64 codes")
    assert says in message
