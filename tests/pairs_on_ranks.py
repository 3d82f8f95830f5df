"""What each of two ranks says of pairs of images: run by tests/metrics/test_pairs.py."""

import torch
from torch import Tensor

from imgsynth.metrics.pairs import PSNR, SSIM


def scores(restored: Tensor, target: Tensor) -> dict[str, tuple[Tensor, Tensor, int]]:
    """Return mean, all ranks' table and the own number: rank 0 has three of five images, or all."""
    rank = torch.distributed.get_rank()
    results = {}
    for name, parts in (("uneven", (slice(0, 3), slice(3, 5))), ("empty", (slice(0, 5), None))):
        for make in (PSNR, SSIM):
            metric = make()
            if parts[rank] is not None:
                metric.update(restored[parts[rank]], target[parts[rank]])
            mean = metric.compute()
            own = len(metric.per_image)
            with metric.sync_context():
                results[f"{name}.{make.__name__}"] = (mean, metric.per_image, own)
    return results
