"""What the checks share: the error, and comparing trees of plain data and tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class ContractError(AssertionError):
    """A class does not keep the contract; the message says which part, and why it matters."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`ContractError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ContractError(message)


def first_difference(a: Any, b: Any, where: str = "") -> str | None:  # noqa: ANN401
    """Return the path of the first value in which two trees of plain data and tensors differ."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and torch.equal(a, b)
        return None if same else where
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.keys() != b.keys():
            return f"{where}, keys {sorted(map(str, a.keys() ^ b.keys()))}"
        pairs = ((f"{where}.{k}" if where else str(k), a[k], b[k]) for k in a)
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = ((f"{where}[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True)))
    else:
        return None if a == b else where
    return next((d for path, x, y in pairs if (d := first_difference(x, y, path))), None)
