"""The words every part shares: batches, losses and counts of images.

The image convention of the whole package: float ``(B, C, H, W)`` in [-1, 1]; labels are int64
``(B,)``. Only :mod:`imgsynth.images` and the datamodules convert from and to other ranges.
"""

import re
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import TypeAlias

from torch import Tensor

Batch: TypeAlias = dict[str, Tensor]
"""``image``, ``label``; ``a``, ``b`` for unpaired data; ``source``, ``target`` for paired data."""

Losses: TypeAlias = dict[str, Tensor]
"""Named scalar terms, each already multiplied with its weight."""

Count: TypeAlias = int | str
"""A number of images: ``200000``, ``"200k"``, ``"1.5M"``."""

_SUFFIXES = {"k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


def parse_count(value: Count, what: str = "a count of images") -> int:
    """Turn ``"200k"`` into 200000.

    Args:
        value: A non-negative whole number, or one with the suffix k, M or G (powers of 1000).
        what: What is counted, for the error.

    Raises:
        ValueError: If ``value`` is no such number.

    Example:
        >>> parse_count("1.5k")
        1500
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    count = _parse_text(str(value))
    if count is None:
        raise ValueError(
            f"{what}: expected a number such as 200000, '200k' or '1.5M', got {value!r}."
        )
    return count


@lru_cache  # schedules ask at every step
def _parse_text(text: str) -> int | None:
    text = text.strip().lower()
    if re.fullmatch(r"\d{1,3}(,\d{3})+[kmg]?", text):  # not "1,5k": a decimal comma elsewhere
        text = text.replace(",", "")
    factor = _SUFFIXES.get(text[-1:], 1)
    try:
        count = Decimal(text[:-1] if factor > 1 else text) * factor
    except InvalidOperation:
        return None
    if not count.is_finite() or not 0 <= count < 10**18 or count % 1:
        return None
    return int(count)


def batch_size(batch: Batch) -> int:
    """Return the number of samples, counted from the first tensor.

    Raises:
        ValueError: If the batch is no dict of tensors.

    Example:
        >>> import torch
        >>> batch_size({"image": torch.zeros(4, 1, 8, 8)})
        4
    """
    if not isinstance(batch, dict) or not batch:
        raise ValueError(
            "A batch must be a dict of tensors such as {'image': ..., 'label': ...}, got "
            f"{type(batch).__name__}; use a datamodule of imgsynth, or a loader of such dicts."
        )
    return len(next(iter(batch.values())))
