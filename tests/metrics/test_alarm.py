"""The alarm, on scores that were measured and on real digits made worse."""

import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.transforms.functional import gaussian_blur

from imgsynth.metrics.alarm import alarm
from imgsynth.metrics.neighbours import density_coverage, precision_recall


def _shares(precision, recall, coverage=None):
    shares = {"precision": precision, "recall": recall}
    return shares if coverage is None else {**shares, "coverage": coverage}


# SqueezeNet's features of 64 pixels, 1500 CIFAR-10 images against 1500 others
REAL = _shares(0.730, 0.741, 0.961)
BLURRED = {0.5: _shares(0.819, 0.620, 0.983), 1.0: _shares(0.885, 0.159, 0.843)}
ONE_CLASS = _shares(0.713, 0.324, 0.404)
HALF = _shares(0.749, 0.663, 0.921)
COPIES = _shares(0.700, 0.000, 0.028)
HALF_BLURRED = _shares(0.812, 0.696, 0.916)
NOISY = [_shares(0.458, 0.635, 0.442), _shares(0.268, 0.145, 0.083), _shares(0.023, 0.005, 0.009)]
# of 19 sets of 1000, those of least and of most recall
EXTREMES = [_shares(0.778, 0.712, 0.977), _shares(0.745, 0.777, 0.973)]


@pytest.mark.parametrize("scores", [*BLURRED.values(), ONE_CLASS, HALF, COPIES, HALF_BLURRED])
def test_images_that_lack_variety_are_told_although_precision_is_that_of_real_ones(scores):
    assert "the images lack variety" in alarm(scores, REAL, num=1500)


def test_a_lack_of_classes_is_told_by_coverage_where_recall_does_not_show_it():
    said = alarm(_shares(0.72, 0.72, 0.824), _shares(0.745, 0.745, 0.971), num=1000)
    assert "their coverage of 0.97 is not reached (0.82)" in said


def test_blur_is_told_from_the_evaluation_before_alone():
    said = alarm(BLURRED[1.0], before=REAL, num=1500)
    assert said.startswith("Precision rose from 0.73 to 0.89 while recall fell from 0.74 to 0.16")
    assert alarm(REAL, before=BLURRED[1.0], num=1500) is None


def test_a_run_that_gets_narrower_is_told_below_the_precision_of_real_images():
    assert "lose variety" in alarm(_shares(0.6, 0.3), REAL, _shares(0.5, 0.5), num=1500)


@pytest.mark.parametrize("scores", [REAL, *NOISY])
def test_real_images_and_images_that_are_plainly_worse_are_not_told(scores):
    assert alarm(scores, REAL, num=1000) is None


def test_the_sets_of_real_images_that_differ_most_are_not_told():
    assert alarm(*EXTREMES, num=1000) is None
    assert alarm(*EXTREMES[::-1], num=1000) is None


def test_a_run_that_improves_in_both_is_not_told():
    assert alarm(_shares(0.74, 0.5), REAL, _shares(0.6, 0.4), num=10_000) is None
    assert alarm(_shares(0.74, 0.5), REAL, _shares(0.74, 0.5), num=10_000) is not None


def test_a_run_that_leaves_noise_behind_is_not_told_although_its_recall_falls_to_that_of_real():
    noise, later, real = _shares(0.192, 0.985), _shares(0.88, 0.89), _shares(0.892, 0.896)
    assert alarm(later, real, noise, num=5000) is None


def test_a_difference_counts_from_four_deviations_and_from_two_hundredths():
    half, other = _shares(0.5, 0.5), _shares(0.5, 0.4)  # 0.1 is four of sqrt((0.25 + 0.24) / n)
    assert alarm(other, half, num=783) is None
    assert alarm(other, half, num=785) is not None
    assert alarm(_shares(0.5, 0.481), half, num=10**6) is None
    assert alarm(_shares(0.5, 0.479), half, num=10**6) is not None


def test_missing_scores_and_numbers_are_named():
    with pytest.raises(ValueError, match="got precision; evaluate both"):
        alarm({"precision": 1.0}, num=100)
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        alarm(REAL, num=0)


@pytest.fixture(scope="module")
def digits():
    """Real digits in two halves, the second with its labels."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(images / 16)[order].view(-1, 1, 8, 8), torch.tensor(labels)[order]
    return images[:890], images[890:1780], labels[890:1780]


def _measured(real, fake):
    real, fake = real.flatten(1), fake.flatten(1)
    coverage = density_coverage(real, fake)[1]
    return _shares(*precision_recall(real, fake), coverage)


def test_digits_are_told_when_blurred_or_noisy_or_few_in_kind_and_not_when_real(digits):
    real, held_out, labels = digits
    floor = _measured(real, held_out)

    def said(images):
        return alarm(_measured(real, images), floor, num=len(images)) or ""

    noise = torch.randn(held_out.shape, generator=torch.Generator().manual_seed(1))
    assert "lack variety" in said(gaussian_blur(held_out, 5, 0.5))
    assert "lack variety" in said(held_out[labels == 1])
    assert "lack variety" in said(held_out[labels < 5])
    assert "scatter" in said((held_out + 0.2 * noise).clamp(0, 1))
    other = _measured(held_out, real)  # the same images, changed about
    assert alarm(other, floor, num=len(real)) is None
