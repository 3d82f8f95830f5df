from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from imgsynth.ema import Average, averaging_weight


def _jiggle(module, generator):
    """Change all parameters and floating buffers by random amounts."""
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor.dtype))


# -- the weight ------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [16, 64, 500])
def test_after_a_half_life_half_of_the_old_weights_is_left(images):
    kept = 1.0
    for update in range(1, 8000 // images + 1):
        kept *= 1 - averaging_weight(images, update * images, half_life=8000, ramp_up=None)
    assert kept == pytest.approx(0.5, abs=0.02 if 8000 % images else 1e-9)


def test_the_average_does_not_depend_on_how_images_are_cut_into_updates():
    two = (1 - averaging_weight(32, 32, 1000, None)) * (1 - averaging_weight(32, 64, 1000, None))
    assert two == pytest.approx(1 - averaging_weight(64, 64, 1000, None))


def test_the_ramp_is_that_of_stylegan2_ada():
    # training_loop.py of the official implementation, in images:
    #   ema_nimg = min(ema_nimg, cur_nimg * ema_rampup); beta = 0.5 ** (batch / max(ema_nimg, 1e-8))
    for seen in (64, 640, 6400, 199_936, 200_064, 10**7):
        beta = 0.5 ** (64 / max(min(10_000, seen * 0.05), 1e-8))
        assert averaging_weight(64, seen, 10_000, 0.05) == pytest.approx(1 - beta)


def test_without_ramp_up_the_weight_is_constant():
    weights = {averaging_weight(64, seen, 10_000, None) for seen in (64, 6400, 10**9)}
    assert weights == {1 - 0.5 ** (64 / 10_000)}


def test_with_ramp_up_the_weight_never_rises():
    weights = [averaging_weight(64, seen, 10_000, 0.05) for seen in range(64, 10**6, 6400)]
    assert all(later <= earlier for earlier, later in pairwise(weights))
    assert weights[0] > 0.999999


def test_a_half_life_of_zero_copies():
    assert averaging_weight(64, 64, 0) == 1.0
    assert averaging_weight(64, 64, 0, None) == 1.0


# -- the average -----------------------------------------------------------------------------------


def _net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_twenty_updates_equal_a_hand_written_loop():
    torch.manual_seed(0)
    live = _net()
    average = Average({"net": live})
    expected = {k: v.clone().double() for k, v in live.state_dict().items()}
    for update in range(20):
        live(torch.randn(8, 3))
        _jiggle(live, None)
        weight = 0.5 / (1 + update)
        average.follow({"net": live}, weight)
        for key, value in live.state_dict().items():
            if key.endswith("num_batches_tracked"):
                expected[key] = value.double()
            else:
                expected[key] = (1 - weight) * expected[key] + weight * value.double()
    own = average["net"].state_dict()
    assert own.keys() == expected.keys()
    for key, value in own.items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)
    assert own["1.num_batches_tracked"] == 20
    assert not torch.equal(own["1.running_mean"], live[1].running_mean)


def test_a_weight_of_one_copies_and_a_weight_of_zero_keeps():
    live = _net()
    average = Average({"net": live})
    before = deepcopy(average["net"].state_dict())
    _jiggle(live, torch.Generator().manual_seed(1))
    average.follow({"net": live}, 0.0)
    assert all(torch.equal(v, before[k]) for k, v in average["net"].state_dict().items())
    average.follow({"net": live}, 1.0)
    now = live.state_dict()
    assert all(torch.equal(v, now[k]) for k, v in average["net"].state_dict().items())


def test_the_live_modules_are_neither_kept_nor_changed():
    live = _net()
    average = Average({"net": live})
    own = {t.data_ptr() for t in [*average.parameters(), *average.buffers()]}
    assert own.isdisjoint(t.data_ptr() for t in [*live.parameters(), *live.buffers()])
    before = deepcopy(live.state_dict())
    average.follow({"net": live}, 0.3)
    assert all(torch.equal(v, before[k]) for k, v in live.state_dict().items())
    assert live.training
    assert all(p.requires_grad for p in live.parameters())


def test_frozen_and_boolean_buffers_are_copied():
    live = nn.Linear(1, 1)
    live.register_buffer("count", torch.tensor(3))
    live.register_buffer("mask", torch.tensor([True, False]))
    average = Average({"net": live})
    live.count.fill_(8)
    live.mask.logical_not_()
    average.follow({"net": live}, 0.5)
    assert average["net"].count.item() == 8
    assert average["net"].mask.tolist() == [False, True]


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, spectral_norm])
def test_singular_vectors_of_spectral_norm_are_copied_not_averaged(norm):
    torch.manual_seed(0)
    live = nn.Sequential(norm(nn.Linear(5, 4)))
    average = Average({"net": live})
    for _ in range(5):
        _jiggle(live, None)
        live(torch.randn(2, 5))  # one power iteration
        average.follow({"net": live}, 0.25)
    vectors = {k: v for k, v in live.state_dict().items() if k.endswith(("_u", "_v"))}
    assert len(vectors) == 2
    own = average["net"].state_dict()
    for key, value in vectors.items():
        assert torch.equal(own[key], value)
        assert own[key].norm().item() == pytest.approx(1.0, abs=1e-5)
    name = next(k for k in own if k.endswith(("original", "weight_orig")))
    assert not torch.equal(own[name], live.state_dict()[name])


def test_buffers_that_end_in_u_but_are_no_singular_vectors_are_averaged():
    live = nn.Linear(1, 1)
    live.register_buffer("mean_u", torch.zeros(1))
    average = Average({"net": live})
    live.mean_u.fill_(4.0)
    average.follow({"net": live}, 0.25)
    assert average["net"].mean_u.item() == 1.0


def test_weights_tied_within_a_module_stay_tied_and_move_once():
    live = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    live[1].weight = live[0].weight
    average = Average({"net": live})
    assert average["net"][1].weight is average["net"][0].weight
    old = average["net"][0].weight.clone()
    with torch.no_grad():
        live[0].weight.add_(1.0)
    average.follow({"net": live}, 0.5)
    torch.testing.assert_close(average["net"][0].weight, old + 0.5)


def test_weights_tied_across_modules_stay_tied():
    encoder, decoder = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    decoder.weight = encoder.weight
    average = Average({"encoder": encoder, "decoder": decoder})
    assert average["encoder"].weight is average["decoder"].weight
    assert len(list(average.parameters())) == 1


def test_an_average_is_frozen_and_stays_in_evaluation_mode():
    parent = nn.Module()
    parent.average = Average({"net": _net()})
    parent.train()
    assert not any(module.training for module in parent.average.modules())
    assert not any(p.requires_grad for p in parent.average.parameters())
    assert parent.average.train() is parent.average


def test_frozen_parameters_of_the_live_module_are_followed_too():
    live = nn.Linear(1, 1).requires_grad_(requires_grad=False)
    average = Average({"net": live})
    live.weight.fill_(5.0)
    average.follow({"net": live}, 1.0)
    assert average["net"].weight.item() == 5.0


# -- tensors that are exchanged behind its back ----------------------------------------------------


def _followed(average, live, weight=0.5):
    """Follow once more and say whether every tensor moved to where it should."""
    before = {k: v.clone() for k, v in average["net"].state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    _jiggle(live, generator)
    average.follow({"net": live}, weight)
    for key, value in live.state_dict().items():
        expected = value if not value.is_floating_point() else before[key].lerp(value, weight)
        torch.testing.assert_close(average["net"].state_dict()[key], expected)


def _started():
    live = _net()
    average = Average({"net": live})
    average.follow({"net": live}, 0.5)  # whatever it caches is now cached
    return live, average


def test_following_goes_on_after_load_state_dict():
    live, average = _started()
    live.load_state_dict(_net().state_dict())
    average["net"].load_state_dict(_net().state_dict())
    _followed(average, live)


def test_following_goes_on_after_load_state_dict_that_assigns():
    live, average = _started()
    live.load_state_dict(deepcopy(_net().state_dict()), assign=True)
    average["net"].load_state_dict(deepcopy(_net().state_dict()), assign=True)
    _followed(average, live)


def test_following_goes_on_after_both_moved_to_another_dtype():
    live, average = _started()
    both = nn.ModuleList([live, average]).to(torch.float64)
    assert both[1]["net"][0].weight.dtype == torch.float64
    _followed(average, live)


def test_following_goes_on_after_the_live_module_alone_made_a_round_trip():
    live, average = _started()
    live.double().float()  # buffers are new tensors now
    _followed(average, live)


def test_following_goes_on_after_a_forward_that_assigns_its_buffer():
    live = nn.Module()
    live.register_buffer("mean", torch.zeros(2))
    live.weight = nn.Parameter(torch.zeros(1))
    average = Average({"net": live})
    average.follow({"net": live}, 0.5)
    live.mean = live.mean + 4.0  # assigned, not changed in place
    average.follow({"net": live}, 0.5)
    assert average["net"].mean.tolist() == [2.0, 2.0]


def test_a_deepcopy_follows_what_it_is_given_and_leaves_the_first_alone():
    live, average = _started()
    other = deepcopy(average)
    before = {k: v.clone() for k, v in average["net"].state_dict().items()}
    _followed(other, live)
    assert all(torch.equal(v, before[k]) for k, v in average["net"].state_dict().items())


def test_a_deepcopy_of_both_follows_the_copy():
    live, average = _started()
    live, average = deepcopy((live, average))
    _followed(average, live)


def test_following_another_module_follows_that_one():
    _, average = _started()
    _followed(average, _net())


def test_a_state_dict_makes_a_round_trip():
    live, average = _started()
    _jiggle(live, torch.Generator().manual_seed(0))
    average.follow({"net": live}, 0.3)
    other = Average({"net": _net()})
    other.load_state_dict(average.state_dict())
    assert set(average.state_dict()) == {f"net.{key}" for key in live.state_dict()}
    for key, value in average.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
    _followed(other, live)


def test_following_is_not_recorded_by_autograd():
    live, average = _started()
    average.follow({"net": live}, 0.5)
    assert all(t.grad_fn is None for t in [*average.parameters(), *average.buffers()])
    live(torch.randn(4, 3)).sum().backward()  # in-place changes of what a graph saved would raise


def test_following_inside_a_graph_of_the_live_module_does_not_disturb_backward():
    live, average = _started()
    loss = live(torch.randn(4, 3)).square().sum()
    average.follow({"net": live}, 0.5)
    loss.backward()
    assert all(p.grad is not None for p in live.parameters())
