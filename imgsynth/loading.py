"""Methods back from their checkpoints, without pickle."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from imgsynth.callbacks.checkpoint import newest_checkpoint
from imgsynth.describe import build
from imgsynth.methods.base import Method


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint that ``path`` names: itself, or the newest one of a run folder.

    Raises:
        FileNotFoundError: If there is none; the message says what was looked for.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"There is no run or checkpoint at {str(path)!r}.")
    found = newest_checkpoint(path)
    if found is None:
        raise FileNotFoundError(f"The folder {str(path)!r} holds no checkpoint (images-*.ckpt).")
    return found


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:  # noqa: ANN401
    """Read a checkpoint of imgsynth; nothing in it can run code.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is truncated, holds pickled objects, or is not from imgsynth.
    """
    path = find_checkpoint(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a file that is no checkpoint can break the reader in any way
        _, is_object, rest = str(error).partition("GLOBAL ")
        if is_object:
            raise ValueError(
                f"{str(path)!r} holds pickled Python objects ({rest.split()[0]}); refused, nothing "
                "of it was run. Checkpoints of imgsynth hold tensors and plain data only."
            ) from error
        raise ValueError(
            f"{str(path)!r} is truncated or no checkpoint ({path.stat().st_size} bytes)."
        ) from error
    if not isinstance(checkpoint, dict) or "imgsynth" not in checkpoint:
        raise ValueError(f"{str(path)!r} was not saved by imgsynth: it has no 'imgsynth' section.")
    section = checkpoint["imgsynth"]
    present = {*checkpoint, *section} if isinstance(section, dict) else set()
    missing = {"state_dict", "method", "seed", "updates", "images_seen", "meter"} - present
    if missing:
        raise ValueError(f"{str(path)!r} is no whole checkpoint: it lacks {min(missing)!r}.")
    return checkpoint


def load(
    path: str | Path,
    *,
    map_location: Any = "cpu",  # noqa: ANN401
    trusted: tuple[str, ...] = (),
    **overrides: Any,  # noqa: ANN401
) -> Method:
    """Rebuild a trained method from a run folder or a checkpoint.

    Args:
        path: A run folder (its newest checkpoint is taken) or a checkpoint.
        map_location: Device to load to.
        trusted: Packages other than imgsynth whose classes the checkpoint may name.
        overrides: Constructor arguments to use instead of the recorded ones, such as
            ``generator=MyNet()`` for a network that does not record how it was built.

    Returns:
        The method in evaluation mode. ``sample`` and the like use the averaged weights; the live
        ones are there too.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If it cannot be read or rebuilt; the message says which argument to pass.

    Example:
        >>> # method = imgsynth.load("runs/demo")
        >>> # images = method.sample(16, labels=3, seed=1)
    """
    checkpoint = read_checkpoint(path, map_location)
    state = checkpoint["imgsynth"]
    try:
        method = build(state["method"], trusted=trusted, **overrides)
    except TypeError as error:  # written by another version of its class
        raise ValueError(f"{str(path)!r} does not fit its class any more: {error}.") from error
    if not isinstance(method, Method):
        raise ValueError(f"{str(path)!r} holds {type(method).__name__}, which is no method.")
    method.configure_model()
    _cast(method, checkpoint["state_dict"])
    _copy(method, checkpoint["state_dict"], type(method).__name__, path)
    for name in ("seed", "updates", "images_seen"):
        setattr(method, name, state[name])
    method.trained_before = torch.from_numpy(_hashes(checkpoint).view(np.int64))
    return method.to(map_location).eval() if map_location is not None else method.eval()


def warm_start(method: Method, path: str | Path, *, modules: tuple[str, ...] = ()) -> list[str]:
    """Copy weights of another run into a new method, before training starts.

    Unlike resuming, counters, optimisers and averages start afresh.

    Args:
        method: Where to copy to.
        path: Run folder or checkpoint to copy from; its class may be another one.
        modules: Names of the submodules to copy; none means all that both have.

    Returns:
        The names of the submodules copied.

    Raises:
        ValueError: If a module is missing in one of the two, or its shapes differ.
    """
    checkpoint = read_checkpoint(path)
    saved = checkpoint["state_dict"]
    available = {key.partition(".")[0] for key in saved} - {"ema"}
    own = {name: module for name, module in method.named_children() if name != "ema"}
    names = modules or tuple(name for name in own if name in available)
    for name in names:
        if name not in own or name not in available:
            raise ValueError(
                f"There is no module {name!r} to copy: the method has {sorted(own)}, "
                f"{str(path)!r} has {sorted(available)}."
            )
        part = {k.partition(".")[2]: v for k, v in saved.items() if k.startswith(f"{name}.")}
        _copy(own[name], part, name, path)
    before = torch.from_numpy(_hashes(checkpoint).view(np.int64))
    method.trained_before = torch.cat([method.trained_before, before])
    if method.ema is not None:
        method.ema = None
        method.configure_model()
    return list(names)


def trained_on(path: str | Path) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return the hashes of all images that a run's weights were trained on.

    Those of the run's own training split, of what it was before the data changed, and of the runs
    that it was started from (:func:`warm_start`, :func:`load`). A datamodule gives the hashes of
    its images by ``fingerprint(split)``; both are of the images as they are trained on, at their
    size and with their channels.

    Args:
        path: Run folder (its newest checkpoint is taken) or checkpoint.

    Returns:
        uint64, sorted, each once. Empty if the data was no datamodule of imgsynth.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If it cannot be read.

    Example:
        >>> # seen = np.isin(data.fingerprint("test"), trained_on("runs/demo"))
        >>> # seen.sum()
        >>> # 0
    """
    return _hashes(read_checkpoint(path))


def _hashes(checkpoint: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    parts = [checkpoint["imgsynth"].get("trained_before", torch.empty(0, dtype=torch.int64))]
    for section in checkpoint.values():  # a datamodule's is called by its class
        if isinstance(section, dict) and "trained_on" in section:
            parts += [section["trained_on"], section["trained_on_earlier"]]
    return np.unique(torch.cat(parts).cpu().numpy().view(np.uint64))


def _cast(method: Method, state: dict[str, torch.Tensor]) -> None:
    """Give parameters and buffers the types that were saved: a run may be in half precision."""
    types = {name: t.dtype for name, t in state.items() if t.is_floating_point()}
    parameters = {types.get(name) for name, _ in method.named_parameters()} - {None}
    wanted = parameters.pop() if len(parameters) == 1 else None
    if wanted is not None and any(p.dtype != wanted for p in method.parameters()):
        method.to(dtype=wanted)
    for name, tensor in method.state_dict(keep_vars=True).items():
        if name in types and tensor.dtype != types[name]:
            tensor.data = tensor.data.to(types[name])


def _copy(module: nn.Module, state: dict[str, torch.Tensor], name: str, path: str | Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f"{name!r} of {str(path)!r} does not fit: {reason}") from error
