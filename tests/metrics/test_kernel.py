"""The kernel distance against torch-fidelity's."""

import pytest
import torch
from feature_metrics import FAKE, REAL, features
from torch_fidelity.metric_kid import kid_features_to_metric

from imgsynth.metrics.base import in_order
from imgsynth.metrics.kernel import KernelDistance, kernel_distance


def _theirs(real, fake, **options):
    found = kid_features_to_metric(fake.double(), real.double(), verbose=False, **options)
    return tuple(found[f"kernel_inception_distance_{part}"] for part in ("mean", "std"))


@pytest.mark.parametrize(("real", "fake"), [(200, 150), (150, 150)])
def test_the_distance_is_that_of_torch_fidelity(real, fake):
    real, fake = features(real, 1, 64), features(fake, 2, 64)
    ours = kernel_distance(real, fake, subsets=10, subset_size=100)
    theirs = _theirs(real, fake, kid_subsets=10, kid_subset_size=100)
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-14)
    other = _theirs(real, fake, kid_subsets=10, kid_subset_size=100, rng_seed=3)
    assert kernel_distance(real, fake, 10, 100, seed=3) == pytest.approx(other, rel=1e-12)
    assert other != theirs


def test_the_metric_draws_from_the_ordered_rows():
    metric = KernelDistance(subsets=10, subset_size=50)
    metric.update(REAL, real=True)
    metric.update(FAKE, real=False)
    theirs = _theirs(in_order(REAL), in_order(FAKE), kid_subsets=10, kid_subset_size=50)
    assert [part.item() for part in metric.compute()] == pytest.approx(theirs, rel=1e-12)


def test_the_distance_of_two_points_is_exact():
    """With x = (0, 2) and y = (1, 1): kernels 1, 1, 8; 8 and 8 within y; 1 and 27 across."""
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    assert kernel_distance(x, y, subsets=1, subset_size=2) == (1 + 8 - 2 * (1 + 27) / 2, 0.0)


def test_too_few_images_are_refused_with_a_way_out():
    with pytest.raises(ValueError, match="1000 images cannot be drawn from 101 fake ones; use"):
        kernel_distance(REAL, FAKE)
    with pytest.raises(ValueError, match="110 images cannot be drawn from 101 real ones"):
        kernel_distance(FAKE, REAL, subset_size=110)
    with pytest.raises(ValueError, match="got subsets=0, subset_size=1"):
        kernel_distance(REAL, FAKE, subsets=0, subset_size=1)
