import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from imgsynth import networks
from imgsynth.networks import DCGANDiscriminator, MLPGenerator, autoencoder
from imgsynth.networks.autoencoder import MLPDecoder, MLPEncoder
from imgsynth.testing import ContractError, check_network

SPEC = importlib.util.spec_from_file_location("broken", Path(__file__).with_name("broken.py"))
broken = importlib.util.module_from_spec(SPEC)
sys.modules["broken"] = broken  # as a user's own module would be
SPEC.loader.exec_module(broken)

PLAYERS = [
    getattr(networks, name)
    for name in networks.__all__
    if name.endswith(("Generator", "Discriminator"))
]
CODERS = [
    getattr(autoencoder, name)
    for name in vars(autoencoder)
    if name.endswith(("Encoder", "Decoder")) and not name.startswith("_")
]


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("network", PLAYERS)
def test_every_network_keeps_the_contract(network, classes):
    check_network(lambda: network((3, 16, 16), classes, width=4))


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("network", PLAYERS)
def test_the_kind_may_be_said(network, classes):
    kind = "generator" if network.__name__.endswith("Generator") else "discriminator"
    check_network(lambda: network((1, 8, 8), classes, width=4), kind=kind)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("network", CODERS)
def test_every_encoder_and_decoder_keeps_the_contract(network, classes):
    kind = "encoder" if network.__name__.endswith("Encoder") else "decoder"
    check_network(lambda: network((3, 16, 16), classes, latent_dim=3, width=4), kind=kind)


def test_a_spectrally_normalised_discriminator_keeps_the_contract():
    check_network(lambda: DCGANDiscriminator((1, 8, 8), 3, width=4, spectral_norm=True))


class Patches(nn.Conv2d):
    image_shape = (1, 8, 8)
    num_classes = 0


class Mixed(nn.Linear):
    """Looks at the whole batch in evaluation mode too."""

    image_shape = (1, 8, 8)
    num_classes = 0

    def forward(self, images, labels=None):
        return super().forward(images.flatten(1) - images.mean())[:, 0]


class Deaf(MLPGenerator):
    def forward(self, z, labels=None):
        return super().forward(z, labels * 0)


class OneTensor(MLPEncoder):
    def forward(self, images, labels=None):
        return torch.cat(super().forward(images, labels), 1)


class ListOfTwo(MLPEncoder):
    def forward(self, images, labels=None):
        return list(super().forward(images, labels))


class Long(MLPEncoder):
    def forward(self, images, labels=None):
        mu, logvar = super().forward(images, labels)
        return mu, torch.cat([logvar, logvar], 1)


class FixedVariance(MLPEncoder):
    def forward(self, images, labels=None):
        mu, logvar = super().forward(images, labels)
        return mu, logvar * 0


class DetachedVariance(MLPEncoder):
    def forward(self, images, labels=None):
        mu, logvar = super().forward(images, labels)
        return mu, logvar.detach()


class NoisyVariance(MLPEncoder):
    def forward(self, images, labels=None):
        mu, logvar = super().forward(images, labels)
        return mu, logvar + torch.randn(()) * (logvar > 0)


class VarianceOfTheBatch(MLPEncoder):
    def forward(self, images, labels=None):
        mu, logvar = super().forward(images, labels)
        return mu, logvar - logvar.mean(0)


class DeafEncoder(MLPEncoder):
    def forward(self, images, labels=None):
        return super().forward(images, labels * 0)


class DeafMean(MLPEncoder):
    """Fine: the class may matter for the log variance alone."""

    def forward(self, images, labels=None):
        mu, _ = super().forward(images, labels * 0)
        return mu, super().forward(images, labels)[1]


class Restless(MLPEncoder):
    """Carries a number that its weights do not."""

    def __init__(self, image_shape, num_classes=0, latent_dim=4, width=8):
        super().__init__(image_shape, num_classes, latent_dim, width)
        self.shift = torch.randn(())

    def forward(self, images, labels=None):
        mu, logvar = super().forward(images, labels)
        return mu, logvar + self.shift


class Transposed(MLPDecoder):
    def forward(self, z, labels=None):
        return super().forward(z, labels).mT


class Nameless(MLPDecoder):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        del self.latent_dim


class Loud(MLPDecoder):
    def forward(self, z, labels=None):
        return 100 * super().forward(z, labels)


def test_a_decoder_may_leave_the_range_of_images_and_a_generator_may_not():
    check_network(lambda: Loud((1, 8, 8), width=8), kind="decoder")
    with pytest.raises(ContractError, match=r"images are in \[-1, 1\]"):
        check_network(lambda: Loud((1, 8, 8), width=8), kind="generator")


@pytest.mark.parametrize(
    ("cls", "classes", "says"),
    [
        (OneTensor, 0, r"tuple of mean and log variance, each of shape \(4, 32\) .* got Tensor"),
        (ListOfTwo, 0, "must return a tuple of mean and log variance, .* got list"),
        (Long, 0, r"got \[\(4, 32\), \(4, 64\)\]"),
        (FixedVariance, 0, "No gradient passes FixedVariance from output 2 of 2 to its input"),
        (DetachedVariance, 0, "from output 2 of 2 to its input"),
        (NoisyVariance, 0, "gives two results for one input"),
        (VarianceOfTheBatch, 0, "depends on the rest of its batch"),
        (DeafEncoder, 3, "labels, but they change nothing"),
        (Restless, 0, "rebuilt with the same weights gives another output"),
        (Transposed, 0, r"states image_shape \(1, 8, 6\) but makes \(1, 6, 8\)"),
        (Nameless, 0, "Nameless.latent_dim must be the length of a latent, got None"),
    ],
)
def test_a_broken_encoder_or_decoder_is_rejected_with_the_reason(cls, classes, says):
    kind = "encoder" if issubclass(cls, MLPEncoder) else "decoder"
    with pytest.raises(ContractError, match=says):
        check_network(lambda: cls((1, 8, 6), classes, width=8), kind=kind)


def test_labels_may_matter_for_one_of_the_outputs():
    check_network(lambda: DeafMean((1, 8, 8), 3, width=8), kind="encoder")


def test_a_kind_that_is_none_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"generator, discriminator, encoder, decoder, got 'vae'"):
        check_network(lambda: MLPGenerator((1, 8, 8)), kind="vae")


def test_a_patch_discriminator_keeps_the_contract():
    check_network(lambda: Patches(1, 1, 3))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.Linear(2, 2), "image_shape must be"),
        (lambda: Patches(1, 2, 3), "must return logits"),
        (lambda: Mixed(64, 1), "depends on the rest of its batch"),
        (lambda: broken.NotInRange((1, 8, 8)), "images are in \\[-1, 1\\]"),
        (lambda: broken.UnusedLayer((1, 8, 8)), "'unused.weight' has no part"),
        (lambda: Deaf((1, 8, 8), 3, latent_dim=4), "labels, but they change nothing"),
    ],
)
def test_a_broken_network_is_rejected_with_the_reason(make, says):
    with pytest.raises(ContractError, match=says):
        check_network(make)


def test_checking_a_network_leaves_no_trace_in_a_second_one():
    def make():
        return MLPGenerator((1, 8, 8), latent_dim=4)

    check_network(make)
    torch.manual_seed(0)
    first = make().state_dict()
    torch.manual_seed(0)
    assert all(torch.equal(v, first[k]) for k, v in make().state_dict().items())
