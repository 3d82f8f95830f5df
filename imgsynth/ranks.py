"""Sums over the processes that train together."""

from torch import Tensor, distributed


def summed_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, without a gradient.

    All ranks must call it. Outside of training on several devices the tensor itself is returned.

    Args:
        tensor: Of the same shape on all ranks.

    Example:
        >>> import torch
        >>> summed_over_ranks(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    tensor = tensor.detach()
    if distributed.is_available() and distributed.is_initialized():
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all ranks, without a gradient; see above."""
    total = summed_over_ranks(tensor)
    is_shared = distributed.is_available() and distributed.is_initialized()
    return total / distributed.get_world_size() if is_shared else total
