"""Networks, one family a file."""

from imgsynth.networks.classifier import ResNet18, SmallCNN
from imgsynth.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from imgsynth.networks.mlp import MLPDiscriminator, MLPGenerator

__all__ = [
    "DCGANDiscriminator",
    "DCGANGenerator",
    "MLPDiscriminator",
    "MLPGenerator",
    "ResNet18",
    "SmallCNN",
]
