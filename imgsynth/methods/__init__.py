"""Methods: one class an objective."""

from imgsynth.methods.adversarial import AdversarialMethod
from imgsynth.methods.base import Method, NonFiniteError
from imgsynth.methods.classifier import Classifier
from imgsynth.methods.gan import GAN, LSGAN, WGANGP, HingeGAN, MinimaxGAN
from imgsynth.methods.iwae import IWAE
from imgsynth.methods.latent_space import LatentSpace
from imgsynth.methods.one_player import OnePlayerMethod
from imgsynth.methods.reconstructor import Reconstructor
from imgsynth.methods.sampler import Sampler
from imgsynth.methods.vae import VAE
from imgsynth.methods.vqvae import VQVAE

__all__ = [
    "GAN",
    "IWAE",
    "LSGAN",
    "VAE",
    "VQVAE",
    "WGANGP",
    "AdversarialMethod",
    "Classifier",
    "HingeGAN",
    "LatentSpace",
    "Method",
    "MinimaxGAN",
    "NonFiniteError",
    "OnePlayerMethod",
    "Reconstructor",
    "Sampler",
]
