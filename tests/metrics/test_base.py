"""What all scores of features share."""

import pickle
import random

import numpy as np
import pytest
import torch
from feature_metrics import FAKE, METRICS, REAL, WIDTH, feed, flat, whole
from torch import nn

from imgsynth.metrics.base import all_rows, check_features, check_sets, in_order
from imgsynth.metrics.frechet import FrechetDistance, Gaussian, factor
from imgsynth.metrics.inception_score import InceptionScore
from imgsynth.metrics.neighbours import PrecisionRecall, radii
from imgsynth.metrics.sliced_wasserstein import SlicedWasserstein


class Pixels(nn.Module):
    """The simplest extractor: pixels are features, and logits."""

    num_logits = 4

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        features = self.scale * images.flatten(1).float() / 255
        return features, features if self.num_logits else None


IMAGES = torch.randint(
    0, 256, (20, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def _set_aside():
    numpy = np.random.get_state()[1].tolist()  # noqa: NPY002  # whoever uses it is undisturbed
    return torch.get_rng_state(), numpy, random.getstate()


@pytest.mark.parametrize("name", METRICS)
def test_a_score_repeats_to_the_last_digit_and_leaves_all_random_states_alone(name):
    before = _set_aside()
    scores = []
    for seed in range(2):
        metric = whole(METRICS[name]())
        scores += [flat(metric.compute()), flat(metric.compute())]
        after = _set_aside()
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before = _set_aside()
    assert scores == [scores[0]] * 4


@pytest.mark.parametrize("name", METRICS)
def test_neither_the_batch_size_nor_the_order_of_arrival_changes_a_score(name):
    score = flat(whole(METRICS[name]()).compute())
    for batch, shuffle in ((7, None), (1, 3), (64, 4)):
        other = flat(whole(METRICS[name](), batch, shuffle).compute())
        assert other == pytest.approx(score, rel=1e-12, abs=0)
        if name in {"KernelDistance", "InceptionScore"}:
            assert other == score


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_can_be_copied_pickled_and_reset(name):
    metric = whole(METRICS[name]())
    score = flat(metric.compute())
    for other in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        assert flat(other.compute()) == score
        other.reset()
        assert flat(whole(other).compute()) == score
    metric.reset()
    with pytest.raises(ValueError, match=r"No (real|fake) images were seen; call update"):
        metric.compute()


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"InceptionScore"}))
def test_real_images_can_be_kept_when_a_metric_is_reset(name):
    metric = whole(METRICS[name](reset_real=False))
    score = flat(metric.compute())
    for _ in range(2):
        metric.reset()
        with pytest.raises(ValueError, match="No fake images were seen"):
            metric.compute()
        feed(metric, torch.arange(len(FAKE)), real=False)
        assert flat(metric.compute()) == score


def test_calling_a_metric_scores_the_batch_and_counts_kept_real_images_once():
    metric = SlicedWasserstein(reset_real=False)
    metric.update(REAL, real=True)
    expected = SlicedWasserstein()
    expected.update(REAL, real=True)
    expected.update(FAKE, real=False)
    assert metric(FAKE, real=False) == expected.compute()
    assert metric.compute() == expected.compute()
    assert len(all_rows(metric.real_rows, "real")) == len(REAL)


def test_an_extractor_is_in_no_checkpoint_and_follows_to_another_device():
    extractor = Pixels()
    metric = FrechetDistance(extractor)
    assert not list(metric.parameters())
    assert list(metric.modules()) == [metric]
    metric.update(IMAGES, real=True)
    assert not metric.state_dict()
    metric.half().to("cpu")
    assert extractor.scale.dtype == torch.float32
    metric.to("meta")
    assert extractor.scale.device.type == metric.real_mean[0].device.type == "meta"


def test_images_are_scored_by_their_features():
    by_images, by_features = PrecisionRecall(Pixels()), PrecisionRecall()
    for real, images in ((True, IMAGES), (False, IMAGES.flip(3))):
        by_images.update(images, real=real)
        by_features.update(images.flatten(1).float() / 255, real=real)
    assert flat(by_images.compute()) == flat(by_features.compute())
    logits = InceptionScore(Pixels())
    logits.update(IMAGES)
    assert len(logits.logits[0]) == 20


def test_an_extractor_without_classes_has_no_inception_score():
    extractor = Pixels()
    extractor.num_logits = 0
    with pytest.raises(ValueError, match="which Pixels does not have"):
        InceptionScore(extractor)


def test_real_features_given_beforehand_are_those_of_updates():
    expected = flat(whole(PrecisionRecall()).compute())
    metric = PrecisionRecall(real=REAL, real_radii=radii(REAL, 3))
    for _ in range(2):
        metric.reset()
        metric.update(FAKE, real=False)
        assert flat(metric.compute()) == expected
    with pytest.raises(ValueError, match="real features were given"):
        metric.update(REAL, real=True)
    with pytest.raises(ValueError, match="which was not given"):
        PrecisionRecall(real_radii=radii(REAL, 3))


def test_a_real_gaussian_given_beforehand_is_that_of_updates():
    covariance = REAL.T.double().cov()
    real = Gaussian(REAL.double().mean(0), covariance, len(REAL))
    for root in (None, factor(covariance)):
        metric = FrechetDistance(real=real, real_factor=root)
        metric.update(FAKE, real=False)
        assert flat(metric.compute()) == pytest.approx(flat(whole(FrechetDistance()).compute()))
    with pytest.raises(ValueError, match="real images were given"):
        metric.update(REAL, real=True)
    with pytest.raises(ValueError, match="which was not given"):
        FrechetDistance(real_factor=factor(covariance))


@pytest.mark.parametrize("name", METRICS)
def test_an_empty_batch_counts_for_nothing(name):
    metric = METRICS[name]()
    feed(metric, torch.arange(0), real=False)
    feed(metric, torch.arange(0), real=True)
    assert flat(whole(metric).compute()) == flat(whole(METRICS[name]()).compute())


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"ClassFrechetDistance"}))
def test_what_no_score_can_take_is_refused(name):
    metric = METRICS[name]()
    with pytest.raises(ValueError, match=r"float tensor \(N, d\), got torch.uint8 of shape \(20,"):
        metric.update(IMAGES, real=False)
    with pytest.raises(ValueError, match="2 of 5 rows are not finite"):
        metric.update(torch.tensor([1, torch.nan, 2, -torch.inf, 3])[:, None], real=False)
    metric.update(FAKE, real=False)
    with pytest.raises(ValueError, match=f"expected {WIDTH} .* as before, got 3"):
        metric.update(FAKE[:, :3], real=False)


def test_features_are_kept_without_a_graph_and_never_in_half_precision():
    kept = check_features(FAKE.bfloat16().requires_grad_())
    assert kept.dtype == torch.float32
    assert not kept.requires_grad
    assert check_features(FAKE.double()).dtype == torch.float64
    with pytest.raises(ValueError, match="from one extractor, got 6 and 2 features"):
        check_sets(REAL, FAKE[:, :2])


def test_rows_are_ordered_as_text_would_be_and_none_is_lost():
    rows = torch.randint(0, 3, (500, 4), generator=torch.Generator().manual_seed(0)).float()
    order = np.lexsort(rows.numpy().T[::-1])
    assert torch.equal(in_order(rows), rows[torch.from_numpy(order)])
