"""Arrays of any number type become whole numbers of 8 or 16 bits."""

import warnings
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Range = tuple[float, float]
"""The value that is black, and the one that is white."""

_AT_ONCE = 1 << 22


def guess_range(array: Array) -> Range:
    """Return the range that an array's values probably have.

    Whole numbers: 0 to 255, or to 65,535 if some are larger. Others: [0, 1], or [-1, 1] if some
    are negative.

    Args:
        array: Integers, floats or booleans.

    Raises:
        ValueError: If the values fit none of these, or are not finite.

    Example:
        >>> guess_range(np.array([-0.5, 1.0]))
        (-1.0, 1.0)
    """
    if array.dtype.kind == "b":
        return 0.0, 1.0
    if array.dtype in (np.uint8, np.uint16):
        return 0.0, 255.0 if array.dtype == np.uint8 else 65535.0
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise ValueError(f"The images hold values that are NaN or infinite ({low} to {high}).")
    if array.dtype.kind == "f" and low >= -1 and high <= 1:
        return (0.0 if low >= 0 else -1.0), 1.0
    if low < 0 or high > 65535 or not _are_whole(array):
        raise ValueError(
            f"The images have values from {low:g} to {high:g} ({array.dtype}), which does not tell "
            f"what is black and what is white; pass value_range=({low:g}, {high:g}), or the range "
            "they could have."
        )
    white = 255 if high <= 255 else 65535
    if high <= white / 8:
        warnings.warn(
            f"The brightest value of the images is {high:g}, which is dark if {white} is white; if "
            f"{high:g} is, pass value_range=(0, {high:g}).",
            stacklevel=2,
        )
    return 0.0, float(white)


def quantise(array: Array, value_range: Range, bits: int) -> Array:
    """Return whole numbers: black becomes 0, white 255 or 65,535, and what lies beyond too.

    Args:
        array: Integers, floats or booleans.
        value_range: Which values are black and white.
        bits: 8 or 16.

    Raises:
        ValueError: If a value is NaN.

    Example:
        >>> quantise(np.array([-1.0, -0.6, 1.0, 2.0]), (-1, 1), 8)
        array([  0,  51, 255, 255], dtype=uint8)
    """
    kind: np.dtype[Any] = np.dtype("u1" if bits == 8 else "u2")
    largest = 2.0**bits - 1
    if (array.dtype, *value_range) == (kind, 0, largest):
        return array
    low, high = value_range
    whole = np.empty(array.shape, kind)
    source, target = array.reshape(-1), whole.reshape(-1)
    for start in range(0, len(source), _AT_ONCE):  # in double precision, but not all at once
        part = (source[start : start + _AT_ONCE].astype(np.float64) - low) / (high - low)
        if np.isnan(part).any():
            raise ValueError("The images hold values that are NaN.")
        target[start : start + _AT_ONCE] = np.rint(part.clip(0, 1) * largest)
    return whole


def _are_whole(array: Array) -> bool:
    flat = array.reshape(-1)
    parts = (flat[i : i + _AT_ONCE] for i in range(0, len(flat), _AT_ONCE))
    return array.dtype.kind in "ui" or all(bool((part == np.rint(part)).all()) for part in parts)
