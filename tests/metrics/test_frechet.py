"""The Frechet distance against four implementations, closed forms and error messages."""

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as cleanfid_distance
from feature_metrics import CLASSES, FAKE, LABELS, REAL, features
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from imgsynth.metrics.frechet import (
    ClassFrechetDistance,
    FrechetDistance,
    Gaussian,
    Moments,
    factor,
    frechet_distance,
)

WIDTH = 48


def _gaussian(rows):
    moments = Moments()
    moments.add(rows)
    return moments.gaussian()


def _random(num, seed, width=WIDTH):
    return features(num, seed, width).double()


@pytest.fixture(scope="module")
def sets():
    return _random(300, 1), _random(400, 2)


def _rank(num, rank, seed):
    """Features that fill only some dimensions."""
    mix = torch.randn(rank, WIDTH, generator=torch.Generator().manual_seed(seed)).double()
    return _random(num, seed, rank) @ mix


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated")
def test_the_distance_is_that_of_four_other_implementations(sets):
    fake, real = sets
    ours = frechet_distance(_gaussian(fake), _gaussian(real))
    parts = [(f.mean(0), np.cov(f, rowvar=False)) for f in (fake.numpy(), real.numpy())]
    statistics = [fid_features_to_statistics(f) for f in sets]
    torchmetrics = FrechetInceptionDistance(_Identity())
    torchmetrics.update(fake, real=False)
    torchmetrics.update(real, real=True)
    for theirs in (
        calculate_frechet_distance(*parts[0], *parts[1]),
        cleanfid_distance(*parts[0], *parts[1]),
        fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"],
        torchmetrics.compute().item(),
    ):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=0)


class _Identity(nn.Module):
    num_features = WIDTH

    def forward(self, images):
        return images


def test_the_distance_is_symmetric_and_zero_to_itself(sets):
    a, b = map(_gaussian, sets)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12 * float(a.covariance.trace()))


def test_the_distance_of_diagonal_gaussians_is_that_of_their_means_and_deviations():
    generator = torch.Generator().manual_seed(0)
    means, stds = torch.rand(2, 2, 20, generator=generator).double()
    a, b = (Gaussian(m, s.square().diag(), 99) for m, s in zip(means, stds, strict=True))
    expected = (means[0] - means[1]).square().sum() + (stds[0] - stds[1]).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_the_distance_in_one_dimension_is_exact():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [9.0], [13.0]])
    # means 1 and 9, deviations sqrt(2) and 4
    expected = 64 + (4 - 2**0.5) ** 2
    assert frechet_distance(_gaussian(a), _gaussian(b)) == pytest.approx(expected, rel=1e-14)


def test_features_that_never_change_add_their_difference_and_nothing_else(sets):
    fake, real = sets
    expected = frechet_distance(_gaussian(fake), _gaussian(real)) + 9.0
    for place in (0, 20, WIDTH):
        a, b = (
            torch.cat([rows[:, :place], torch.full((len(rows), 1), value), rows[:, place:]], 1)
            for rows, value in ((fake, 1.0), (real, 4.0))
        )
        assert frechet_distance(_gaussian(a), _gaussian(b)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("ranks", [(30, 48), (48, 30), (30, 20)])
def test_covariances_without_full_rank_lose_no_digits(ranks):
    """tr((C1 C2)^(1/2)) is the sum of singular values of X Y^T, from the rows themselves."""
    fake, real = _rank(200, ranks[0], 1), _rank(150, ranks[1], 2)
    scaled = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (fake, real)]
    cross = torch.linalg.svdvals(scaled[0] @ scaled[1].T).sum()
    traces = sum(x.square().sum() for x in scaled)
    expected = (fake.mean(0) - real.mean(0)).square().sum() + traces - 2 * cross
    ours = frechet_distance(_gaussian(fake), _gaussian(real))
    assert ours == pytest.approx(float(expected), rel=1e-11)


@pytest.mark.parametrize("rank", [WIDTH, 30])
def test_a_factor_gives_the_covariance_back_and_can_be_reused(rank):
    real, fake = _gaussian(_rank(200, rank, 3)), _gaussian(_random(200, 1))
    root = factor(real.covariance)
    assert root.shape == (WIDTH, rank)
    torch.testing.assert_close(root @ root.T, real.covariance, rtol=1e-10, atol=1e-12)
    assert frechet_distance(fake, real, root) == frechet_distance(fake, real)
    with pytest.raises(ValueError, match=f"expected {WIDTH} rows, one a feature, got shape"):
        frechet_distance(fake, real, root[:3])


def test_a_covariance_that_only_rounding_makes_definite_is_not_trusted_to_cholesky():
    covariance = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 2**-52]], dtype=torch.float64)
    assert torch.linalg.cholesky(covariance)[1, 1] > 1e-8
    root = factor(covariance)
    assert root.shape == (2, 1)
    torch.testing.assert_close(root @ root.T, covariance)


def test_moments_in_batches_are_those_of_numpy_also_far_from_zero():
    rows = features(1000, 0, 5).double() * 1e-3 + 1e5
    batches, halves = Moments(), (Moments(), Moments())
    for i, some in enumerate(rows.split(37)):
        batches.add(some)
        halves[i % 2].add(some)
    halves[0].merge(halves[1])
    halves[0].merge(Moments())
    exact = rows.numpy().astype(np.longdouble)
    mean = exact.mean(0)
    covariance = (exact - mean).T @ (exact - mean) / 999
    for gaussian in (batches.gaussian(), halves[0].gaussian()):
        assert gaussian.num == 1000
        np.testing.assert_allclose(gaussian.mean.numpy(), mean.astype(float), rtol=1e-14)
        # uncentred sums would be off by as much as the largest variance
        error = np.abs(gaussian.covariance.numpy() - covariance.astype(float)).max()
        assert error < 1e-8 * covariance.max()


def test_merging_leaves_the_other_as_it_was(sets):
    first, second = Moments(), Moments()
    first.add(sets[0])
    before = first.gaussian()
    second.merge(first)
    second.add(sets[1])
    assert torch.equal(first.gaussian().covariance, before.covariance)
    with pytest.raises(ValueError, match=f"expected {WIDTH} an image as before, got 2"):
        second.add(sets[0][:, :2])


def test_too_few_images_are_refused_on_either_side_unless_asked_for(sets):
    many, few = _gaussian(sets[0]), _gaussian(sets[1][:48])
    with pytest.raises(ValueError, match="48 features needs at least 49 images, got 48 fake ones"):
        frechet_distance(few, many)
    with pytest.raises(ValueError, match="48 features needs at least 49 images, got 48 real ones"):
        frechet_distance(many, few)
    assert frechet_distance(few, many, allow_few=True) > frechet_distance(_gaussian(sets[1]), many)
    metric = FrechetDistance(allow_few=True)
    metric.update(sets[0], real=True)
    metric.update(sets[1][:48], real=False)
    assert metric.compute().item() == frechet_distance(few, many, allow_few=True)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        _gaussian(sets[0][:1])
    one = Gaussian(many.mean, many.covariance, 1)
    with pytest.raises(ValueError, match="got 1 fake ones"):
        frechet_distance(one, many, allow_few=True)


def test_gaussians_that_do_not_fit_are_refused(sets):
    a, b = map(_gaussian, sets)
    with pytest.raises(ValueError, match="from one extractor, got 48 and 6 features"):
        frechet_distance(_gaussian(FAKE), b)
    with pytest.raises(ValueError, match="real features' mean or covariance is not finite"):
        frechet_distance(a, Gaussian(b.mean, b.covariance * torch.nan, b.num))


def test_the_distance_of_each_class_is_that_of_its_images():
    metric = ClassFrechetDistance(CLASSES)
    metric.update(REAL, real=True, labels=LABELS)
    metric.update(FAKE, real=False, labels=LABELS[: len(FAKE)])
    mean, classes = metric.compute()
    expected = [
        frechet_distance(_gaussian(FAKE[i::CLASSES]), _gaussian(REAL[i::CLASSES]))
        for i in range(CLASSES)
    ]
    assert classes.tolist() == pytest.approx(expected, rel=1e-12)
    assert mean.item() == pytest.approx(sum(expected) / CLASSES, rel=1e-12)


def test_a_class_with_too_few_images_is_named():
    metric = ClassFrechetDistance(CLASSES)
    metric.update(REAL, real=True, labels=LABELS)
    metric.update(FAKE, real=False, labels=torch.zeros(101).long())
    with pytest.raises(ValueError, match=r"Class 1: .* at least 2 images, got 0"):
        metric.compute()
    metric.update(FAKE[:5], real=False, labels=torch.ones(5).long())
    with pytest.raises(ValueError, match=r"Class 1: .* at least 7 images, got 5 fake ones"):
        metric.compute()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"int64 of shape \(120,\), got none"),
        (LABELS[:5], r"int64 of shape \(120,\), got torch.int64 of shape \(5,\)"),
        (LABELS.float(), "got torch.float32"),
        (LABELS + 1, "between 0 and 2, got 3"),
        (LABELS - 1, "between 0 and 2, got -1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        ClassFrechetDistance(CLASSES).update(REAL, real=True, labels=labels)
