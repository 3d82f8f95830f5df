"""Weights from a file: read without running anything, and refused if they are another network's."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

_MOST_NAMES = 3
_COUNTER = "num_batches_tracked"


def read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    """Read the named tensors of a file, as ``torch.save(module.state_dict(), path)`` writes them.

    Args:
        path: The file.
        expected: What it should be, for the errors.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything else than named tensors, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; expected {expected}.")
    try:
        with path.open("rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # a file that holds no weights can break the reader in any way
        reason = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
        raise ValueError(
            f"{path} holds something other than weights, or is damaged; expected {expected}. No "
            f"object in it was opened ({type(error).__name__}: {reason[:120]})."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no mapping of names to tensors; expected {expected}.")
    return {str(name): tensor for name, tensor in state.items()}


def check_layers(
    path: Path, state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], network: str
) -> None:
    """Check that weights are those of a network, by names and shapes.

    Counters of batches, which batch normalisation writes and never reads, may be there or not.

    Args:
        path: Where they are from, for the error.
        state: The weights.
        shapes: Name and shape of every weight of the network.
        network: What it is, for the error.

    Raises:
        ValueError: If they are another network's.
    """
    wanted = {name: shape for name, shape in shapes.items() if not name.endswith(_COUNTER)}
    given = {name: tensor for name, tensor in state.items() if not name.endswith(_COUNTER)}
    faults = {
        "missing": wanted.keys() - given.keys(),
        "unknown": given.keys() - wanted.keys(),
        "of another shape": {
            f"{name} {tuple(given[name].shape)} for {tuple(shape)}"
            for name, shape in wanted.items()
            if name in given and given[name].shape != shape
        },
    }
    if any(faults.values()):
        said = "; ".join(f"{what}: {_some(names)}" for what, names in faults.items() if names)
        raise ValueError(f"{path} holds weights of another network than {network} ({said}).")


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
