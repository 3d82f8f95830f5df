"""Several devices: data-parallel training of methods whose players step in turn."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

_SHARDED = (
    "it keeps a part of each parameter on each device, but averaged copies, the clipping of single "
    "players and the checks before a checkpoint need them whole"
)
_REFUSED = {
    DeepSpeedStrategy: "it steps a single optimiser, and shards what it steps",
    FSDPStrategy: _SHARDED,
    ModelParallelStrategy: _SHARDED,
}


class PlayerDDP(DDPStrategy):
    """Data-parallel training that synchronises the player who steps, and nobody else.

    ``DistributedDataParallel`` expects every parameter in every backward pass; with two players
    it fails, or, told to find unused parameters, reduces those of both players in each pass. Here
    each device runs its own passes, as many as a loss needs (penalties, accumulation), and before
    an optimiser steps the gradients of its parameters are averaged in one flat all-reduce. A
    gradient that is absent on some devices counts as zeros there; one that is absent on all stays
    absent, as on one device.

    Methods of imgsynth choose it by themselves where ``ddp`` is asked for (several devices ask
    for it), so ``Trainer(devices=2)`` is enough. Parameters and buffers start as the first
    device's; what devices estimate for themselves, such as the statistics of batch
    normalisation, is averaged before checkpoints and evaluations
    (:meth:`~imgsynth.methods.Method.synchronise`).

    Example:
        >>> # Trainer(devices=2, strategy=PlayerDDP(timeout=timedelta(minutes=5)))
    """

    def configure_ddp(self) -> None:
        """Start from the first device's parameters and buffers; the module is not wrapped."""
        assert isinstance(self.model, nn.Module)
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            _broadcast(tensor.detach())

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: Any = None,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Average the gradients of this optimiser's parameters over the devices, then step."""
        # Before they are unscaled (fp16): an overflow on one device is then one on all of them.
        profiler = self.lightning_module.trainer.profiler  # type: ignore[union-attr]
        with profiler.profile("synchronise"):
            average_gradients([p for group in optimizer.param_groups for p in group["params"]])
        return super().optimizer_step(optimizer, closure, model, **kwargs)


def _broadcast(tensor: Tensor) -> None:
    """Give a tensor the first device's values; backends write past one that is not dense."""
    dense = tensor.contiguous()
    distributed.broadcast(dense, 0)
    if dense.data_ptr() == tensor.data_ptr():
        return
    # Places of an expanded tensor share memory, which is written once.
    once = tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())
    tensor[once].copy_(dense[once])


@torch.no_grad()
def average_gradients(parameters: list[Tensor]) -> None:
    """Replace the gradients of some parameters by their means over all devices.

    One all-reduce for each dtype, of as many elements as the parameters have. All devices must
    call it with the same parameters.

    Args:
        parameters: With ``grad`` set, or None where a device has none. Those that do not require
            gradients are passed over.
    """
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad and parameter.numel():
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
    for group in by_dtype.values():
        _average(group)


def _average(parameters: list[Tensor]) -> None:
    # A sum of floats is -0.0 only if all of them are, so the sign of a zero tells for free
    # whether any device has a gradient: absent ones are -0.0, present ones begin with another.
    present = [p.grad is not None for p in parameters]
    flat = torch.cat(
        [
            p.grad.reshape(-1) if p.grad is not None else p.new_full((p.numel(),), -0.0)
            for p in parameters
        ]
    )
    parts = torch.split(flat, [p.numel() for p in parameters])
    flat.div_(distributed.get_world_size())  # before the sum, which could overflow in fp16
    if any(present):
        heads = [part[:1] for part, is_ in zip(parts, present, strict=True) if is_]
        torch._foreach_add_(heads, 0.0)  # makes +0.0 of -0.0
    distributed.all_reduce(flat)
    if any(present):
        torch._foreach_copy_(
            [p.grad for p in parameters if p.grad is not None],
            [t.view_as(p) for p, t in zip(parameters, parts, strict=True) if p.grad is not None],
        )
    for parameter, part in zip(parameters, parts, strict=True):
        # Waits for the device, but only where a gradient is absent.
        if parameter.grad is None and not (part[0] == 0 and part[0].signbit()):
            parameter.grad = part.view_as(parameter).clone()


def adopt(strategy: Strategy, method: str, *, automatic: bool) -> None:
    """Make the Trainer's strategy one that serves a method, or say why it cannot.

    Args:
        strategy: What the Trainer has chosen; a plain :class:`DDPStrategy` becomes
            :class:`PlayerDDP` in place.
        method: The method's name, for errors.
        automatic: Whether Lightning optimises: there is one player then, and plain DDP serves.

    Raises:
        ValueError: If it shards parameters, or wraps the module in a way that cannot serve two
            players.
    """
    reason = why_not(strategy)
    if reason:
        raise ValueError(
            f"{type(strategy).__name__} cannot train {method}: {reason}. Use strategy='ddp'."
        )
    if getattr(strategy, "_layer_sync", None) and strategy.root_device.type == "cpu":
        raise ValueError(
            "sync_batchnorm=True needs GPUs: torch synchronises batch normalisation only there. "
            "Leave it out; statistics are averaged over the devices before checkpoints."
        )
    if automatic and type(strategy) is PlayerDDP:  # of a Trainer that fitted another method before
        strategy.__class__ = DDPStrategy  # type: ignore[assignment]
    if automatic or type(strategy) is not DDPStrategy:
        return
    options = strategy._ddp_kwargs
    if options.get("find_unused_parameters"):
        return  # works too, and was asked for
    hooks = (strategy._ddp_comm_state, strategy._ddp_comm_hook, strategy._ddp_comm_wrapper)
    given = [name for name in options if name != "find_unused_parameters"]
    given += ["communication hooks"] if any(hook is not None for hook in hooks) else []
    given += ["model averaging"] if strategy._model_averaging_period is not None else []
    if given:
        raise ValueError(
            f"DDPStrategy was given {', '.join(given)}, which belong to DistributedDataParallel; "
            f"the players of {method} step in turn, which it does not support. Leave them out, or "
            "add find_unused_parameters=True."
        )
    strategy.__class__ = PlayerDDP  # its processes and devices exist already


def why_not(strategy: Strategy | str) -> str:
    """Say why a strategy, or one of Lightning's names for it, cannot train a method; or nothing."""
    for refused, reason in _REFUSED.items():
        name = getattr(refused, "strategy_name", None)
        named = isinstance(strategy, str) and name and strategy.startswith(name)
        if named or isinstance(strategy, refused):
            return reason
    return ""
