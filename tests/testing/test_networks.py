import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from imgsynth import networks
from imgsynth.networks import DCGANDiscriminator, MLPGenerator
from imgsynth.testing import ContractError, check_network

SPEC = importlib.util.spec_from_file_location("broken", Path(__file__).with_name("broken.py"))
broken = importlib.util.module_from_spec(SPEC)
sys.modules["broken"] = broken  # as a user's own module would be
SPEC.loader.exec_module(broken)

PLAYERS = [n for name in networks.__all__ if not hasattr(n := getattr(networks, name), "features")]


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("network", PLAYERS)
def test_every_network_keeps_the_contract(network, classes):
    check_network(lambda: network((3, 16, 16), classes, width=4))


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
