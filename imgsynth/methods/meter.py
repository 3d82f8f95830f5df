"""Sums of named loss terms, kept on the device until a row is due."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from imgsynth.types import Losses


class Meter:
    """Averages loss terms over a window of updates without a host sync.

    ``LightningModule.log`` costs about 0.3 ms a key and step whether or not anything is written;
    here a step costs one fused addition for each player.

    Example:
        >>> meter = Meter()
        >>> meter.add("train/generator", {"hinge": torch.tensor(1.0)})
        >>> meter.add("train/generator", {"hinge": torch.tensor(3.0)})
        >>> meter.means()
        {'train/generator/hinge': 2.0}
    """

    def __init__(self) -> None:
        self._windows: dict[tuple[str, ...], tuple[list[Tensor], list[float]]] = {}

    def add(self, prefix: str, losses: Losses, weight: float = 1.0) -> None:
        """Add one occurrence of some terms.

        Args:
            prefix: ``train/<player>``, or ``train`` where there is one player.
            losses: Scalar terms. A term absent from a step does not count in its mean.
            weight: How much this occurrence counts (a part of an accumulated batch: below 1).
        """
        values = [value.detach() for value in losses.values()]
        key = (prefix, *losses)
        window = self._windows.get(key)
        if window is None:
            window = ([torch.zeros_like(v, dtype=torch.float32) for v in values], [0.0])
            self._windows[key] = window
        torch._foreach_add_(window[0], values, alpha=weight)
        window[1][0] += weight

    def totals(self) -> tuple[list[str], Tensor]:
        """Return the terms' names and an ``(n, 2)`` tensor of their sums and weights."""
        rows: dict[str, list[Tensor]] = {}
        for (prefix, *names), (sums, weight) in self._windows.items():
            for name, value in zip(names, sums, strict=True):
                row = torch.stack([value, torch.full_like(value, weight[0])])
                rows.setdefault(f"{prefix}/{name}", []).append(row)
        if not rows:
            return [], torch.zeros(0, 2)
        return list(rows), torch.stack([torch.stack(parts).sum(0) for parts in rows.values()])

    def means(self) -> dict[str, float]:
        """Return the mean of each term since the last :meth:`reset` (one host sync)."""
        names, totals = self.totals()
        values = (totals[:, 0] / totals[:, 1]).tolist() if names else []
        return dict(zip(names, values, strict=True))

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """The windows there are: a prefix and the names that occurred together."""
        return list(self._windows)

    def flat(self, keys: Iterable[tuple[str, ...]], device: torch.device) -> Tensor:
        """Return the sums and the weight of each window as one vector; zeros for one not there."""
        parts = []
        for key in keys:
            zero = torch.zeros((), dtype=torch.float32, device=device)
            sums, weight = self._windows.get(key, ([zero] * len(key[1:]), [0.0]))
            parts += [*sums, zero + weight[0]]
        return torch.stack(parts)

    def restore(self, keys: Iterable[tuple[str, ...]], flat: Tensor) -> None:
        """Take windows from a vector of :meth:`flat`, in the order of its keys."""
        self._windows = {}
        weights = flat.tolist()
        end = 0
        for key in keys:
            start, end = end, end + len(key)
            sums = list(flat[start : end - 1].clone().unbind())
            self._windows[key] = (sums, [weights[end - 1]])

    def reset(self) -> None:
        """Start a new window."""
        self._windows.clear()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the open window as plain data and tensors."""
        return [
            {"key": list(key), "sums": torch.stack(sums), "weight": weight[0]}
            for key, (sums, weight) in self._windows.items()
        ]

    def load_state_dict(self, state: list[dict[str, Any]], device: torch.device) -> None:
        """Continue the window that :meth:`state_dict` described."""
        self._windows = {
            tuple(entry["key"]): (
                list(entry["sums"].to(device, copy=True).unbind()),
                [entry["weight"]],
            )
            for entry in state
        }
