"""The digits: scikit-learn's scans, one fixed split."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from imgsynth.data import Digits


def test_the_split_is_the_fixed_permutation() -> None:
    order = np.random.default_rng(0).permutation(1797)
    bunch = load_digits()
    data = Digits()
    for split, chosen in (("train", order[:1297]), ("test", order[1297:])):
        images, labels = next(data.reference(split, 2000))
        levels = images[:, 0].double() * 16 / 255
        assert np.abs(levels.numpy() - bunch.images[chosen]).max() < 16 / 255
        assert labels is not None
        assert labels.tolist() == bunch.target[chosen].tolist()


def test_the_17_levels_are_rounded_to_the_nearest_of_256() -> None:
    images, _ = next(Digits().reference("train", 2000))
    expected = [int(level * 255 / 16 + 0.5) for level in range(17)]
    assert images.unique().tolist() == expected
    assert images.dtype == torch.uint8


def test_the_digits_state_their_shape_and_classes() -> None:
    data = Digits()
    assert (data.image_shape, data.num_classes) == ((1, 8, 8), 10)
    assert data.class_names == tuple("0123456789")
    assert sum(data.class_counts) == data.num_images("train") == 1297
    assert data.num_images("test") == 500


def test_no_training_scan_is_in_the_test_split() -> None:
    data = Digits()
    assert not set(data.fingerprint("train")) & set(data.fingerprint("test"))


def test_the_digits_can_be_made_larger() -> None:
    assert Digits(size=32).image_shape == (1, 32, 32)
