"""Whole levels from numbers of any type."""

import numpy as np
import pytest

from imgsynth.data import levels
from imgsynth.data.levels import guess_range, quantise


@pytest.mark.parametrize("bits", [8, 16])
def test_levels_come_back_from_their_own_fractions(bits: int) -> None:
    whole = np.arange(2**bits, dtype="u1" if bits == 8 else "u2")
    found = quantise(whole / (2**bits - 1) * 3 - 1, (-1, 2), bits)
    assert found.dtype == whole.dtype
    assert np.array_equal(found, whole)


def test_what_needs_no_change_is_not_copied() -> None:
    whole = np.zeros((4, 4), np.uint8)
    assert quantise(whole, (0, 255), 8) is whole


def test_large_arrays_are_converted_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    monkeypatch.setattr(levels, "_AT_ONCE", 4)
    assert np.array_equal(quantise(whole.astype(np.int64), (0, 255), 8), whole)
    assert np.array_equal(
        quantise(whole.transpose(2, 0, 1) / 255, (0, 1), 8), whole.transpose(2, 0, 1)
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([True]), (0, 1)),
        (np.array([3], np.uint8), (0, 255)),
        (np.array([3], np.uint16), (0, 65535)),
        (np.array([0, 200]), (0, 255)),
        (np.array([0, 60000]), (0, 65535)),
        (np.array([0.0, 200.0]), (0, 255)),
        (np.array([0.0, 0.2]), (0, 1)),
        (np.array([-0.1, 0.2]), (-1, 1)),
    ],
)
def test_the_range_is_guessed_from_type_and_values(values: np.ndarray, expected: tuple) -> None:  # type: ignore[type-arg]
    assert guess_range(values) == expected
