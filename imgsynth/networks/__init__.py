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
from imgsynth.networks.quantizer import FiniteScalarQuantizer, Quantizer, VectorQuantizer
from imgsynth.networks.spatial import SpatialDecoder, SpatialEncoder
from imgsynth.networks.transformer import CodeTransformer

__all__ = [
    "CodeTransformer",
    "ConvDecoder",
    "ConvEncoder",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "FiniteScalarQuantizer",
    "MLPDecoder",
    "MLPDiscriminator",
    "MLPEncoder",
    "MLPGenerator",
    "Quantizer",
    "ResNet18",
    "ResNetDecoder",
    "ResNetEncoder",
    "SmallCNN",
    "SpatialDecoder",
    "SpatialEncoder",
    "VectorQuantizer",
]
