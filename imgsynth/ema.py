"""Exponential moving averages of weights, with a half-life in images."""

from collections.abc import Iterator
from copy import deepcopy
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn

_Slot = tuple[dict[str, Any], str]
_Slots = tuple[list[_Slot], list[_Slot], list[_Slot], list[_Slot]]
"""Averaged tensors and their live ones, copied tensors and their live ones."""


def averaging_weight(
    images_per_update: int, images_seen: int, half_life: float, ramp_up: float | None = 0.05
) -> float:
    """Return how much of the live weights enters the average at one update.

    ``1 - 0.5 ** (images_per_update / half_life)``, so that after ``half_life`` images half of the
    average is newer than they are. Early in a run the half-life is at most ``ramp_up`` times the
    images seen: the average forgets the untrained weights.

    Args:
        images_per_update: Real images consumed by one update on all devices.
        images_seen: Real images consumed so far, this update included.
        half_life: In images; 0 copies the live weights.
        ramp_up: Half-life per image seen; None turns the ramp off.

    Source:
        Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data" (official
        implementation: ``ema_kimg`` and ``ema_rampup``).

    Example:
        >>> averaging_weight(64, 10**6, half_life=64)
        0.5
    """
    if ramp_up is not None:
        half_life = min(half_life, images_seen * ramp_up)
    return 1.0 - 0.5 ** (images_per_update / half_life) if half_life > 0 else 1.0


def _is_power_iteration(name: str) -> bool:
    """Spectral norm's singular vectors: unit vectors, which must not be averaged."""
    return name.endswith(("weight_u", "weight_v")) or (
        "parametrizations." in name and name.endswith(("._u", "._v"))
    )


class Average(nn.ModuleDict):
    """Frozen averaged copies of some modules, always in evaluation mode.

    Parameters and floating buffers are averaged; integer buffers and the singular vectors of
    spectral norm are copied. Modules that share weights keep sharing them: one deepcopy memo
    serves all.

    Args:
        modules: The live modules by name. They are copied, not kept.

    Example:
        >>> live = nn.Linear(1, 1, bias=False)
        >>> average = Average({"net": live})
        >>> _ = nn.init.constant_(live.weight, 3.0), nn.init.constant_(average["net"].weight, 1.0)
        >>> average.follow({"net": live}, 0.5)
        >>> average["net"].weight.item()
        2.0
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        memo: dict[int, object] = {}
        super().__init__({name: deepcopy(module, memo) for name, module in modules.items()})
        self.requires_grad_(requires_grad=False)
        super().train(mode=False)
        self._followed: list[nn.Module] = []
        self._slots: _Slots = ([], [], [], [])

    def train(self, mode: bool = True) -> "Average":
        """Stay in evaluation mode: an average has nothing to learn."""
        return super().train(mode=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the live modules out of copies: a copy follows what it is given."""
        return {**self.__dict__, "_followed": [], "_slots": ([], [], [], [])}

    @torch.no_grad()
    def follow(self, modules: dict[str, nn.Module], weight: float) -> None:
        """Move the averages by ``weight`` towards the live modules."""
        live = list(modules.values())
        if len(live) != len(self._followed) or any(map(is_not, live, self._followed)):
            self._followed, self._slots = live, self._match(modules)
        averages, lives, copies, sources = ([d[k] for d, k in slots] for slots in self._slots)
        if averages:
            torch._foreach_lerp_(averages, lives, weight)
        if copies:
            torch._foreach_copy_(copies, sources)

    def _match(self, modules: dict[str, nn.Module]) -> _Slots:
        """Find each tensor's place, not the tensor: casts and assignments exchange tensors."""
        slots: _Slots = ([], [], [], [])
        seen: set[int] = set()
        for name, live, live_slot in _tensors(modules):
            path, _, attribute = name.rpartition(".")
            module = self.get_submodule(path)
            where = module._parameters if attribute in module._parameters else module._buffers
            if id(where[attribute]) in seen:
                continue
            seen.add(id(where[attribute]))
            averaged = live.is_floating_point() and not _is_power_iteration(name)
            slots[0 if averaged else 2].append((where, attribute))
            slots[1 if averaged else 3].append(live_slot)
        return slots


def _tensors(modules: dict[str, nn.Module]) -> Iterator[tuple[str, Tensor, _Slot]]:
    for root, top in modules.items():
        for path, module in top.named_modules(prefix=root, remove_duplicate=False):
            for where in (module._parameters, module._buffers):
                for attribute, tensor in where.items():
                    if tensor is not None:
                        yield f"{path}.{attribute}", tensor, (where, attribute)
