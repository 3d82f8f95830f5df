"""Networks, one family a file."""

from imgsynth.networks.autoencoder import (
    ConvDecoder,
    ConvEncoder,
    MLPDecoder,
    MLPEncoder,
    ResNetDecoder,
    ResNetEncoder,
)
from imgsynth.networks.classifier import ResNet18, SmallCNN
from imgsynth.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from imgsynth.networks.mlp import MLPDiscriminator, MLPGenerator

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "MLPDecoder",
    "MLPDiscriminator",
    "MLPEncoder",
    "MLPGenerator",
    "ResNet18",
    "ResNetDecoder",
    "ResNetEncoder",
    "SmallCNN",
]
