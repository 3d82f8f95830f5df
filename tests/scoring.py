"""One evaluation, by one process or by several."""

from pathlib import Path

import torch
from torch import Tensor, nn

from imgsynth.data import Digits
from imgsynth.methods import HingeGAN
from imgsynth.metrics.evaluation import Evaluation
from imgsynth.metrics.extractor import Extractor
from imgsynth.networks import MLPDiscriminator, MLPGenerator

METRICS = ["fd", "fd_class", "cls_score", "kd", "precision", "recall", "density", "coverage", "swd"]


class Pooled(Extractor):
    """Four means as features and ten logits, of 8x8 gray images."""

    name, num_features, num_logits, channels = "pooled", 4, 10, 1

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Average quarters; take ten pixels."""
        pixels = images.float() / 255
        return nn.functional.avg_pool2d(pixels, 4).flatten(1), pixels.flatten(1)[:, 20:30]


def scores(folder: str, num: int, metrics: list[str] = METRICS) -> dict[str, float]:
    """Score a generator that is the same for all."""
    torch.manual_seed(0)
    networks = MLPGenerator((1, 8, 8), 10, latent_dim=4), MLPDiscriminator((1, 8, 8), 10)
    method = HingeGAN(*networks)
    method.configure_model()
    evaluation = Evaluation(
        Digits(), Pooled(), metrics, folder=Path(folder), num=num, conditional=True
    )
    return evaluation.score(method, seeds=(1,)).means()
