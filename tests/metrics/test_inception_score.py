"""The Inception score against torch-fidelity's, and closed forms."""

import pytest
import torch
from feature_metrics import FAKE, REAL, features
from torch_fidelity.metric_isc import isc_features_to_metric

from imgsynth.metrics.base import in_order
from imgsynth.metrics.inception_score import InceptionScore, inception_score


@pytest.mark.parametrize(("num", "splits"), [(200, 10), (25, 10), (12, 10), (50, 1)])
def test_the_score_is_that_of_torch_fidelity(num, splits):
    logits = 2 * features(num, 1, 20)
    for seed in (2020, 5):
        theirs = isc_features_to_metric(logits, splits=splits, rng_seed=seed)
        ours = inception_score(logits, splits, seed)
        assert ours == pytest.approx(tuple(theirs.values()), rel=1e-12, abs=1e-14)


def test_the_metric_splits_the_ordered_rows_and_passes_real_images_over():
    metric = InceptionScore()
    metric.update(REAL, real=True)
    metric.update(FAKE, real=False)
    theirs = isc_features_to_metric(in_order(FAKE))
    ours = [part.item() for part in metric.compute()]
    assert ours == pytest.approx(list(theirs.values()), rel=1e-12)


def test_the_score_lies_between_one_and_the_number_of_classes():
    sure = 1e4 * torch.eye(10).repeat(3, 1)
    assert inception_score(sure, splits=1) == (pytest.approx(10), 0.0)
    assert inception_score(torch.zeros(30, 10)) == pytest.approx((1.0, 0.0))


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match=r"10 splits needs at least 10 images .* got 9 images"):
        inception_score(REAL[:9])
    with pytest.raises(ValueError, match="0 splits needs at least 1 images and 1 split"):
        inception_score(REAL, splits=0)
    with pytest.raises(ValueError, match="logits: 1 of 2 rows are not finite"):
        inception_score(torch.tensor([[1.0], [torch.inf]]))
