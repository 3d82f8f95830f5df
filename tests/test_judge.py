"""The judge of the digit recipes, judged by real images and by noise."""

import importlib.util
import sys
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from imgsynth.methods import Method, Sampler

PATH = Path(__file__).parents[1] / "experiments" / "judge_digits.py"
SPEC = importlib.util.spec_from_file_location("judge_digits", PATH)
judge_digits = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(judge_digits)


class Memory(Sampler, Method):
    """Recites training images of the class asked for: nothing is clearer, or more varied."""

    num_classes = 10

    def sample(self, num, labels=None, *, seed=0, ema=True):
        real = load_digits()
        train = np.random.default_rng(0).permutation(1797)[:1297]
        by_class = [cycle(train[real.target[train] == label]) for label in range(10)]
        chosen = [next(by_class[i % 10]) for i in range(num)]
        return torch.tensor(real.images[chosen] / 8 - 1, dtype=torch.float32)[:, None]


class Noise(Memory):
    def sample(self, num, labels=None, *, seed=0, ema=True):
        return torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class OneOfEach(Memory):
    """Clear and without variety: only *worth* can see that."""

    def sample(self, num, labels=None, *, seed=0, ema=True):
        return super().sample(10).repeat(num // 10, 1, 1, 1)


def test_training_images_are_recognised_and_worth_nearly_what_they_are():
    found = judge_digits.judge(Memory())
    assert found["real"] == pytest.approx(0.994)
    assert found["recognised"] > 0.99
    assert found["worth"] > 0.98


def test_noise_is_worth_nothing():
    found = judge_digits.judge(Noise())
    assert found["recognised"] < 0.2
    assert found["worth"] < 0.3


def test_one_image_a_class_is_recognised_but_worth_little():
    found = judge_digits.judge(OneOfEach())
    assert found["recognised"] == 1.0
    assert found["worth"] < 0.9


def test_what_cannot_be_judged_is_explained(monkeypatch, capsys):
    class Unconditional(Memory):
        num_classes = 0

    class Large(Noise):
        def sample(self, num, labels=None, *, seed=0, ema=True):
            return torch.zeros(num, 1, 16, 16)

    with pytest.raises(ValueError, match="Expected a generator conditional on 10 digits"):
        judge_digits.judge(Unconditional())
    with pytest.raises(ValueError, match="the judge reads digits at their own size"):
        judge_digits.judge(Large())
    monkeypatch.setattr(sys, "argv", ["judge_digits.py", "no/such/run"])
    assert judge_digits.main() == 2
    assert "There is no run or checkpoint at 'no/such/run'" in capsys.readouterr().err
