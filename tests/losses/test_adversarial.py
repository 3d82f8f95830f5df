"""The adversarial terms against the formulas of their papers."""

import math

import pytest
import torch

from imgsynth import losses

LOGITS = [-30.0, -1.5, -1.0, -0.25, 0.0, 0.5, 1.0, 2.0, 30.0]


def _sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


# Each formula is written from the paper, of one logit, in Python floats.
FORMULAS = {
    "nonsaturating_d_real": lambda s: -math.log(_sigmoid(s)),
    "nonsaturating_d_fake": lambda s: -math.log(_sigmoid(-s)),  # 1 - D = sigmoid(-s)
    "nonsaturating_g": lambda s: -math.log(_sigmoid(s)),
    "minimax_g": lambda s: math.log(_sigmoid(-s)),
    "hinge_d_real": lambda s: -min(0.0, -1 + s),
    "hinge_d_fake": lambda s: -min(0.0, -1 - s),
    "hinge_g": lambda s: -s,
    "least_squares_d_real": lambda s: 0.5 * (s - 1) ** 2,
    "least_squares_d_fake": lambda s: 0.5 * s**2,
    "least_squares_g": lambda s: 0.5 * (s - 1) ** 2,
    "wasserstein_d_real": lambda s: -s,
    "wasserstein_d_fake": lambda s: s,
    "wasserstein_g": lambda s: -s,
}


def test_every_public_term_is_checked_against_a_formula():
    public = {n for n in losses.__all__ if getattr(losses, n).__module__.endswith("adversarial")}
    assert set(FORMULAS) == public


@pytest.mark.parametrize("name", FORMULAS)
def test_a_term_is_the_mean_of_the_papers_formula(name):
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    expected = sum(FORMULAS[name](s) for s in LOGITS) / len(LOGITS)
    assert getattr(losses, name)(logits).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_terms_gradient_is_the_formulas_slope(name):
    values = [s for s in LOGITS if abs(s) not in {1.0, 30.0}]  # away from kinks and flat ends
    logits = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    getattr(losses, name)(logits).backward()
    step = 1e-6
    formula = FORMULAS[name]
    slopes = [(formula(s + step) - formula(s - step)) / (2 * step * len(values)) for s in values]
    assert logits.grad.tolist() == pytest.approx(slopes, abs=1e-8)


@pytest.mark.parametrize("name", FORMULAS)
def test_patches_count_like_images(name):
    logits = torch.randn(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    term = getattr(losses, name)
    assert term(logits).shape == ()
    torch.testing.assert_close(term(logits), term(logits.flatten()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FORMULAS)
def test_half_precision_logits_are_summed_in_float32(name, dtype):
    logits = torch.full((4096,), 300.0, dtype=dtype)  # squared beyond the largest float16
    term = getattr(losses, name)(logits)
    assert term.dtype == torch.float32
    assert term.item() == pytest.approx(getattr(losses, name)(logits.double()).item(), rel=1e-5)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_term_stays_finite_for_logits_that_saturate_a_sigmoid(name):
    logits = torch.tensor([-1e4, 1e4], requires_grad=True)
    term = getattr(losses, name)(logits)
    term.backward()
    assert term.isfinite()
    assert logits.grad.isfinite().all()


def test_the_nonsaturating_loss_pulls_where_the_minimax_loss_has_vanished():
    logits = torch.tensor([-20.0], requires_grad=True)
    (strong,) = torch.autograd.grad(losses.nonsaturating_g(logits), logits)
    (weak,) = torch.autograd.grad(losses.minimax_g(logits), logits)
    assert strong.item() == pytest.approx(-1.0)
    assert weak.item() == pytest.approx(-math.exp(-20), rel=1e-4)


def test_cross_entropy_agrees_with_torch_with_logits():
    logits = torch.randn(64, generator=torch.Generator().manual_seed(1))
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(losses.nonsaturating_d_real(logits), entropy(logits, torch.ones(64)))
    torch.testing.assert_close(
        losses.nonsaturating_d_fake(logits), entropy(logits, torch.zeros(64))
    )


def test_least_squares_labels_of_the_papers_other_choice_are_accepted():
    logits = torch.tensor([0.5])  # a = -1, b = 1, c = 0: eq. 8
    assert losses.least_squares_d_fake(logits, label=-1.0).item() == 0.5 * 1.5**2
    assert losses.least_squares_d_real(logits, label=1.0).item() == 0.5 * 0.5**2
    assert losses.least_squares_g(logits, label=0.0).item() == 0.5 * 0.5**2
