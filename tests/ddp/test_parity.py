"""Two processes train what one would train on the joined batch."""

import signal

import parity
import pytest
import torch
from ranks import together

import imgsynth.methods
from imgsynth.methods import AdversarialMethod, Method, OnePlayerMethod

pytestmark = [
    pytest.mark.ddp,
    pytest.mark.xdist_group("ddp"),  # one server of processes
    pytest.mark.filterwarnings("ignore:MinimaxGAN"),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks ended with, by case."""
    return together(tmp_path_factory.mktemp("ranks"), parity.on_ranks)


def test_every_public_method_is_among_the_cases():
    public = {getattr(imgsynth.methods, name) for name in imgsynth.methods.__all__}
    methods = {c for c in public if isinstance(c, type) and issubclass(c, Method)}
    bases = {Method, AdversarialMethod, OnePlayerMethod}
    assert {c.__name__ for c in methods - bases} == set(parity.METHODS)


@pytest.mark.parametrize("name", parity.CASES)
def test_two_ranks_end_where_one_process_with_the_joined_batch_ends(ranks, name):
    one = parity.in_one_process(name)
    for two in (rank[name] for rank in ranks):
        assert two["images"] == one["images"] == parity.UPDATES * parity.images_of_update(name)
        assert two["state"].keys() == one["state"].keys()
        for key, tensor in one["state"].items():
            torch.testing.assert_close(two["state"][key], tensor, rtol=0, atol=1e-6, msg=key)
        # a term counts where it occurs, so the one rank that has it is all there is
        only = {k: v * parity.RANKS for k, v in one["terms"].items() if k.endswith("/extra")}
        assert two["terms"] == pytest.approx(one["terms"] | only, abs=1e-5)
    before = parity.fresh(name).state_dict()
    still = {key for key, tensor in before.items() if torch.equal(tensor, one["state"][key])}
    # a parameter that no rank's loss has; a Wasserstein critic's bias, which cancels; a flag
    constant = {"discriminator.never", "discriminator.head.linear.bias", "quantizer.started"}
    assert still <= constant


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """What each of two ranks saw of the faults that one of them met, by method."""
    folder = tmp_path_factory.mktemp("faults")
    return together(folder, parity.faults, str(folder))


@pytest.mark.parametrize("name", parity.METHODS)
def test_nan_on_one_rank_is_refused_by_both(faults, name):
    first, second = (rank[name]["nan"] for rank in faults)
    assert first == second
    assert "after update 3; nothing was saved" in first


@pytest.mark.parametrize("name", parity.METHODS)
def test_a_signal_to_one_rank_stops_both_and_the_run_goes_on_exactly(faults, name):
    for rank in faults:
        assert rank[name]["stop"] == {"signal": signal.SIGTERM, "updates": (4, 8), "same": True}


@pytest.mark.parametrize("name", parity.METHODS)
def test_the_clock_of_the_first_rank_decides_when_to_save(faults, name):
    per_update = parity.images_of_update(name)
    expected = [f"images-{updates * per_update:012d}.ckpt" for updates in (4, 8)]
    for rank in faults:
        assert rank[name]["minute"] == expected


def test_ranks_do_not_part_at_the_end_of_a_run(tmp_path):
    ranks = together(tmp_path, parity.ends)
    for rank in ranks:
        assert rank["late"] == {"signal": None, "updates": 54}  # too late: the run was over
        assert "by their counts (56, 58) images" in rank["uneven"]
    halves = [rank["half"] for rank in ranks]
    assert halves[0]["own"] != halves[1]["own"]
    for half in halves:
        mean = sum(h["own"] for h in halves) / 2
        assert half["all"] == pytest.approx(mean, rel=1e-5)


def test_statistics_of_batch_norm_agree_after_saves_and_in_evaluations(ranks, tmp_path):
    first, second = together(tmp_path, parity.with_batch_norm, str(tmp_path))
    for moment in ("evaluated", "saved"):
        assert any(key.startswith("ema.") for key in first[moment])
        for key, tensor in first[moment].items():
            assert torch.equal(tensor, second[moment][key]), (moment, key)
    for key, tensor in first["saved"].items():
        own = torch.stack([rank["own"][key] for rank in (first, second)])
        assert not torch.equal(own[0], own[1]), key  # each rank had its own before
        torch.testing.assert_close(tensor, own.mean(0), msg=key)
        torch.testing.assert_close(first["file"][key], tensor, rtol=0, atol=0, msg=key)
    assert second["shown"] == {}  # the first rank draws, with the statistics of both
    for key, tensor in first["shown"].items():
        source = f"ema.{key}" if key.startswith("generator.") else key  # averaged weights draw
        own = torch.stack([rank["drawn"][source] for rank in (first, second)])
        assert not torch.equal(own[0], own[1]), key
        torch.testing.assert_close(tensor, own.mean(0), msg=key)
    assert all(torch.equal(p, second["parameters"][k]) for k, p in first["parameters"].items())


@pytest.mark.parametrize("name", parity.CASES)
def test_the_ranks_end_with_the_same_bits(ranks, name):
    first, second = (rank[name]["state"] for rank in ranks)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", parity.TWO_PLAYERS)  # of others torch reduces
def test_an_update_reduces_the_elements_of_the_player_who_steps_and_no_more(ranks, name):
    method = parity.fresh(name)
    generator, discriminator = (
        sum(p.numel() for p in player.parameters())
        for player in (method.generator, method.discriminator)
    )
    expected = [discriminator] * method.batches_per_step + [generator]
    assert ranks[0][name]["reduced"] == [expected] * parity.UPDATES
