"""The sliced Wasserstein distance against scipy and closed forms."""

from math import gcd

import pytest
import torch
from feature_metrics import FAKE, REAL, features
from scipy.stats import wasserstein_distance

from imgsynth.metrics import sliced_wasserstein as module
from imgsynth.metrics.sliced_wasserstein import sliced_wasserstein

SIZES = [(50, 50), (60, 40), (101, 7), (1, 30)]


@pytest.mark.parametrize("sizes", SIZES)
def test_the_distance_in_one_dimension_is_that_of_scipy(sizes):
    x, y = (features(n, seed, 1) for seed, n in enumerate(sizes))
    theirs = wasserstein_distance(x[:, 0].double(), y[:, 0].double())
    assert sliced_wasserstein(x, y, projections=3, p=1) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
def test_sets_of_different_size_are_compared_as_if_repeated_to_the_same(sizes):
    x, y = (features(n, seed, 5).double() for seed, n in enumerate(sizes))
    common = sizes[0] * sizes[1] // gcd(*sizes)
    repeated = [t.repeat(common // len(t), 1) for t in (x, y)]
    for p in (1, 2):
        expected = sliced_wasserstein(*repeated, projections=4, p=p)
        assert sliced_wasserstein(x, y, projections=4, p=p) == pytest.approx(expected, rel=1e-12)


def test_a_moved_copy_is_as_far_as_the_mean_square_of_its_move_along_directions():
    x, move = features(40, 0, 12).double(), torch.zeros(12).double()
    move[0], move[5] = 3.0, -4.0
    distance = sliced_wasserstein(x, x + move, projections=20_000)
    assert distance == pytest.approx(5 / 12**0.5, rel=0.02)  # deviates by 0.006
    twice = sliced_wasserstein(x, x + 2 * move, projections=20_000)
    assert twice == pytest.approx(2 * distance, rel=1e-12)
    one = torch.tensor([[1.0], [4.0]])
    assert sliced_wasserstein(one, one + 2.5, projections=7) == pytest.approx(2.5, rel=1e-14)


def test_the_square_of_a_widened_gaussian_is_the_difference_of_deviations():
    """W2 between quantiles q and 3 q is the root mean square of 2 q."""
    x = torch.linspace(-1, 1, 101).double()[:, None]
    expected = 2 * x.square().mean().sqrt()
    assert sliced_wasserstein(x, 3 * x, projections=2) == pytest.approx(float(expected), rel=1e-12)


def test_the_seed_alone_chooses_the_directions(monkeypatch):
    distances = [sliced_wasserstein(REAL, FAKE, 9, seed=seed) for seed in (0, 0, 1)]
    assert distances[0] == distances[1] != distances[2]
    monkeypatch.setattr(module, "_VALUES", 500)  # in pieces
    assert sliced_wasserstein(REAL, FAKE, 9, seed=0) == pytest.approx(distances[0], rel=1e-14)


def test_the_distance_is_symmetric_and_zero_to_itself():
    back = sliced_wasserstein(FAKE, REAL)
    assert sliced_wasserstein(REAL, FAKE) == pytest.approx(back, rel=1e-12)
    assert sliced_wasserstein(REAL, REAL.flip(0)) == 0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="got p=3, projections=512, 120 real and 101 fake"):
        sliced_wasserstein(REAL, FAKE, p=3)
    with pytest.raises(ValueError, match="projections=0"):
        sliced_wasserstein(REAL, FAKE, projections=0)
    with pytest.raises(ValueError, match="0 real and 101 fake images"):
        sliced_wasserstein(REAL[:0], FAKE)
    with pytest.raises(ValueError, match="got 6 and 2 features"):
        sliced_wasserstein(REAL, FAKE[:, :2])
