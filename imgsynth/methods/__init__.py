"""Methods: one class an objective."""

from imgsynth.methods.adversarial import AdversarialMethod
from imgsynth.methods.base import Method, NonFiniteError
from imgsynth.methods.classifier import Classifier
from imgsynth.methods.gan import GAN, LSGAN, WGANGP, HingeGAN, MinimaxGAN
from imgsynth.methods.sampler import Sampler

__all__ = [
    "GAN",
    "LSGAN",
    "WGANGP",
    "AdversarialMethod",
    "Classifier",
    "HingeGAN",
    "Method",
    "MinimaxGAN",
    "NonFiniteError",
    "Sampler",
]
