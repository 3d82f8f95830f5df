import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from imgsynth import methods
from imgsynth.augment import RandomTranslation
from imgsynth.methods import AdversarialMethod, HingeGAN
from imgsynth.networks import DCGANDiscriminator, DCGANGenerator, MLPDiscriminator, MLPGenerator
from imgsynth.optim import Adam, LinearDecay
from imgsynth.testing import ContractError, check_method

SPEC = importlib.util.spec_from_file_location("broken", Path(__file__).with_name("broken.py"))
broken = importlib.util.module_from_spec(SPEC)
sys.modules["broken"] = broken  # as a user's own module would be
SPEC.loader.exec_module(broken)

SHAPE = (1, 8, 8)


def networks(classes=2, **kwargs):
    return (
        MLPGenerator(SHAPE, num_classes=classes, latent_dim=4, width=8),
        MLPDiscriminator(SHAPE, num_classes=classes, width=8, **kwargs),
    )


OBJECTIVES = [
    cls
    for name in methods.__all__
    if isinstance(cls := getattr(methods, name), type)
    and issubclass(cls, AdversarialMethod)
    and cls is not AdversarialMethod
]


@pytest.mark.filterwarnings("ignore:MinimaxGAN")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("classes", [0, 2])
def test_every_objective_keeps_the_contract(objective, classes):
    check_method(lambda: objective(*networks(classes, dropout=0.1)))


def test_a_method_with_everything_switched_on_keeps_the_contract():
    check_method(
        lambda: HingeGAN(
            DCGANGenerator(SHAPE, 2, width=4, latent_dim=4),
            DCGANDiscriminator(SHAPE, 2, width=4, spectral_norm=True, batch_norm=False),
            augment=RandomTranslation(1),
            accumulate=2,
            discriminator_steps=2,
            generator_clip=1.0,
            discriminator_clip=1.0,
            generator_schedule=LinearDecay(warmup=2),
        )
    )


def test_plain_networks_keep_the_contract_when_data_is_given(digits):
    def make():
        generator = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Unflatten(1, SHAPE))
        return HingeGAN(generator, nn.Sequential(nn.Flatten(), nn.Linear(64, 1)))

    check_method(make, digits)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("RawBackward", "calls loss.backward() itself"),
        ("ForgottenTerm", "does not depend on the fakes: is a term forgotten?"),
        ("FakeNotDetached", "they are detached"),
        ("HiddenRandomNumber", "does not come from torch's default generator"),
        ("DeadTerm", "the term 'brightness' has no graph"),
        ("HiddenState", "state that is not in the checkpoint"),
        ("ForgottenSuper", "must call super().on_save_checkpoint"),
        ("ExtraStep", "Lightning 4 optimiser steps"),
        ("CountedTwice", "counted 6 updates"),
        ("LeftOut", "would never learn: no optimiser has it"),
        ("OfNoPlayer", "'gain' would never learn: no optimiser has it"),
        ("PickledState", "objects that only pickle can read"),
    ],
)
def test_a_broken_method_is_rejected_with_the_reason(name, says):
    with pytest.raises(ContractError, match=re.escape(says)) as caught:
        check_method(lambda: getattr(broken, name)(*networks()))
    assert "\n" not in str(caught.value)


def test_a_layer_without_a_part_in_any_term_is_named():
    with pytest.raises(ContractError, match=r"generator\.unused\.weight.* got no gradient"):
        check_method(lambda: HingeGAN(broken.UnusedLayer(SHAPE, 2), networks()[1]))


def test_a_learning_rate_of_zero_is_noticed():
    with pytest.raises(ContractError, match="did not change in 3 updates"):
        check_method(lambda: HingeGAN(*networks(), generator_optimizer=Adam(lr=0.0)))


def test_weights_drawn_from_a_hidden_generator_are_rejected():
    hidden = torch.Generator()

    def make():
        method = HingeGAN(*networks())
        nn.init.normal_(next(method.generator.parameters()), generator=hidden)
        return method

    with pytest.raises(ContractError, match="other initial weights"):
        check_method(make)


def test_a_generator_without_shape_needs_data():
    generator = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, SHAPE))
    with pytest.raises(ContractError, match="states no image_shape"):
        check_method(lambda: HingeGAN(generator, nn.Flatten()))
