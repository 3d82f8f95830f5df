import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from torch import nn

from imgsynth.optim import (
    SGD,
    Adam,
    AdamW,
    CosineDecay,
    LinearDecay,
    Optimizer,
    RMSprop,
    Schedule,
)


def _parameter(value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.tensor([value]))


@pytest.mark.parametrize(
    ("factory", "cls", "expected"),
    [
        (Adam(), torch.optim.Adam, {"lr": 2e-4, "betas": (0.5, 0.999), "eps": 1e-8}),
        (
            Adam(lr=1e-3, weight_decay=0.1, beta1=0.0, beta2=0.9, eps=1e-6),
            torch.optim.Adam,
            {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.0, 0.9), "eps": 1e-6},
        ),
        (
            AdamW(lr=3e-4),
            torch.optim.AdamW,
            {"lr": 3e-4, "weight_decay": 1e-2, "betas": (0.9, 0.999)},
        ),
        (
            SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
            torch.optim.SGD,
            {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        ),
        (
            RMSprop(lr=5e-5, alpha=0.9, eps=1e-7, momentum=0.1, weight_decay=0.2),
            torch.optim.RMSprop,
            {"lr": 5e-5, "alpha": 0.9, "eps": 1e-7, "momentum": 0.1, "weight_decay": 0.2},
        ),
    ],
)
def test_a_factory_makes_torchs_optimiser_with_its_numbers(
    factory: Optimizer, cls: type, expected: dict[str, object]
) -> None:
    parameter = _parameter()
    optimizer = factory([parameter])
    assert type(optimizer) is cls
    (group,) = optimizer.param_groups
    assert group["params"] == [parameter]
    assert {key: group[key] for key in expected} == expected


def test_the_first_step_of_adam_moves_by_the_learning_rate() -> None:
    # Kingma & Ba, algorithm 1: after bias correction the first step is lr * g / (|g| + eps).
    parameter = _parameter()
    optimizer = Adam(lr=0.25)([parameter])
    (3 * parameter).sum().backward()
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([0.75]))


def test_the_decay_of_adamw_is_decoupled_from_the_gradient() -> None:
    parameter = _parameter(2.0)
    optimizer = AdamW(lr=0.5, weight_decay=0.1)([parameter])
    (0 * parameter).sum().backward()
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([2.0 * (1 - 0.5 * 0.1)]))


@pytest.mark.parametrize("cls", [Adam, AdamW])
def test_one_kernel_makes_the_same_steps_but_for_rounding(cls: type[Adam]) -> None:
    ends = []
    for fused in (False, True):
        parameter = nn.Parameter(torch.linspace(-1, 1, 7))
        optimizer = cls(lr=0.1, weight_decay=0.1, fused=fused)([parameter])
        assert bool(optimizer.param_groups[0]["fused"]) == fused
        for _ in range(5):
            optimizer.zero_grad()
            (parameter - 0.3).square().sum().backward()
            optimizer.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends)


def test_a_factory_serves_twice_without_sharing_state() -> None:
    factory = Adam()
    first, second = factory([_parameter()]), factory([_parameter()])
    first.param_groups[0]["lr"] = 1.0
    assert second.param_groups[0]["lr"] == 2e-4
    assert factory == Adam()


def test_factories_and_schedules_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Adam().lr = 1.0  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Schedule().warmup = 1  # type: ignore[misc]


def test_the_base_factory_makes_nothing_and_names_those_that_do() -> None:
    with pytest.raises(TypeError, match="Optimizer is a base class; use Adam, AdamW"):
        Optimizer()([_parameter()])


@pytest.mark.parametrize("cls", [Adam, AdamW, SGD, RMSprop, Optimizer])
@pytest.mark.parametrize("lr", [-1e-4, math.nan, math.inf])
def test_every_factory_refuses_a_wrong_learning_rate(cls: type[Optimizer], lr: float) -> None:
    with pytest.raises(ValueError, match=r"lr must be at least 0, got (-0.0001|nan|inf)"):
        cls(lr=lr)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Adam(beta1=1.0), "beta1"),
        (lambda: Adam(beta2=-0.1), "beta2"),
        (lambda: AdamW(beta2=1.5), "beta2"),
        (lambda: Adam(eps=-1.0), "eps"),
        (lambda: AdamW(weight_decay=-1.0), "weight_decay"),
        (lambda: SGD(momentum=-1.0), "momentum"),
        (lambda: SGD(nesterov=True), "momentum"),
        (lambda: RMSprop(alpha=1.0), "alpha"),
        (lambda: RMSprop(eps=math.nan), "eps"),
        (lambda: RMSprop(momentum=-0.5), "momentum"),
    ],
)
def test_a_wrong_number_is_refused_by_name_at_construction(make: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()  # type: ignore[operator]


def test_without_arguments_the_factor_stays_one() -> None:
    assert [Schedule().factor(n, None) for n in (0, 1, 10**9)] == [1.0, 1.0, 1.0]


def test_warm_up_rises_linearly_from_zero_and_stays() -> None:
    schedule = Schedule(warmup="2k")
    assert [schedule.factor(n, None) for n in (0, 500, 2000, 2001, 10**7)] == [0, 0.25, 1, 1, 1]


@pytest.mark.parametrize("images", [0, 99, 100, 130, 175, 299, 300, 1000])
def test_linear_decay_is_the_line_between_start_and_end(images: int) -> None:
    schedule = LinearDecay(start=100, end=300, final=0.2)
    if images <= 100:
        expected = 1.0
    elif images >= 300:
        expected = 0.2
    else:
        expected = 1.0 - 0.8 * (images - 100) / 200
    assert schedule.factor(images, None) == pytest.approx(expected)


@pytest.mark.parametrize("images", [0, 100, 130, 200, 299, 300, 1000])
def test_cosine_decay_is_equation_5_of_sgdr(images: int) -> None:
    schedule = CosineDecay(start=100, end=300, final=0.1)
    t = min(max(images - 100, 0), 200) / 200  # T_cur / T_i
    expected = 0.1 + 0.5 * (1.0 - 0.1) * (1 + math.cos(math.pi * t))
    assert schedule.factor(images, None) == pytest.approx(expected)


def test_warm_up_multiplies_the_decay() -> None:
    schedule = LinearDecay(warmup=100, start=0, end=200)
    assert schedule.factor(50, None) == pytest.approx(0.5 * 0.75)
    assert schedule.factor(150, None) == pytest.approx(0.25)


@pytest.mark.parametrize("cls", [LinearDecay, CosineDecay])
def test_a_decay_without_an_end_ends_with_the_run(cls: type[LinearDecay]) -> None:
    assert cls().factor(1000, 1000) == pytest.approx(0.0)
    assert cls().factor(500, 1000) == pytest.approx(0.5)
    assert cls(end=500).factor(500, 1000) == pytest.approx(0.0)


@pytest.mark.parametrize("cls", [LinearDecay, CosineDecay])
def test_a_decay_of_a_run_without_a_length_says_what_to_give(cls: type[LinearDecay]) -> None:
    with pytest.raises(ValueError, match=rf"{cls.__name__}.*no length.*end=.*--images.*max_steps"):
        cls().factor(0, None)


def test_a_decay_that_would_start_after_the_run_never_starts() -> None:
    assert LinearDecay(start=1000).factor(500, 500) == 1.0
    assert LinearDecay(start=1000).factor(1000, 500) == 1.0


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Schedule(warmup=-1), "warmup"),
        (lambda: Schedule(warmup="soon"), "warmup"),
        (lambda: LinearDecay(start="1kk"), "start"),
        (lambda: LinearDecay(end="half"), "end"),
        (lambda: LinearDecay(start="2k", end="1k"), "end must be above start"),
        (lambda: CosineDecay(start=5, end=5), "end must be above start"),
        (lambda: LinearDecay(final=-0.5), "final"),
    ],
)
def test_a_wrong_schedule_is_refused_by_name_at_construction(make: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()  # type: ignore[operator]


def test_numbers_of_numpy_reach_neither_optimiser_nor_learning_rate() -> None:
    (group,) = Adam(lr=np.float64(1e-3), beta1=np.float32(0.5))([_parameter()]).param_groups
    assert [type(value) for value in (group["lr"], *group["betas"])] == [float] * 3
    decay = LinearDecay(end=np.int64(100), final=np.float64(0.5))
    assert type(decay.factor(50, None)) is float
