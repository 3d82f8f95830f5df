"""Counts of images and the size of a batch."""

import numpy as np
import pytest
import torch

from imgsynth.types import batch_size, parse_count


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (0, 0),
        (200_000, 200_000),
        (np.int64(7), 7),
        ("200000", 200_000),
        ("200_000", 200_000),
        ("200,000", 200_000),
        ("1,234,567", 1_234_567),
        (" 200k ", 200_000),
        ("200K", 200_000),
        ("1.5M", 1_500_000),
        ("0.1k", 100),
        ("2g", 2_000_000_000),
        ("1e3", 1_000),
        ("123456789012345677", 123_456_789_012_345_677),
    ],
)
def test_a_count_may_have_a_suffix(value, count):
    assert parse_count(value) == count
    assert type(parse_count(value)) is int


@pytest.mark.parametrize(
    "value",
    [
        -1, "-1", "-1k", "", "k", "many", "1.5", "1.0001k", "1kk", "1 k k", "nan", "inf", "1e400",
        "1e30", True, False, None, "0x10", "1,5k", "12,34", [1],
    ],
)  # fmt: skip
def test_what_is_no_count_is_refused_by_name(value):
    with pytest.raises(ValueError, match="the run's length: expected a number such as 200000"):
        parse_count(value, "the run's length")


def test_a_batch_is_counted_from_its_first_tensor():
    assert batch_size({"a": torch.zeros(3, 1, 8, 8), "b": torch.zeros(3, 1, 8, 8)}) == 3
