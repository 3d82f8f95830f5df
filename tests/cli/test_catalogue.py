"""What the source says must be what importing it says."""

import inspect
from importlib import import_module

import pytest
from lightning.pytorch import Trainer
from torch import nn

from imgsynth.cli import catalogue
from imgsynth.cli.parser import defaults_of
from imgsynth.data import ImageDataModule
from imgsynth.likelihoods import Likelihood
from imgsynth.methods import Method
from imgsynth.metrics import Extractor
from imgsynth.optim import Optimizer, Schedule

ANCESTORS = {
    "methods": Method,
    "networks": nn.Module,
    "augmentations": nn.Module,
    "likelihoods": Likelihood,
    "optimizers": Optimizer,
    "schedules": Schedule,
    "extractors": Extractor,
    "data": ImageDataModule,
}
ALL = [(role, name) for role in catalogue.ROLES for name in catalogue.choices(role)]


def imported(role, name):
    folder = catalogue.ROLES[role].folder.removesuffix(".py")
    return getattr(import_module(f"imgsynth.{folder}"), name)


@pytest.mark.parametrize(("role", "name"), ALL)
def test_a_class_is_what_it_is_listed_as_and_has_a_summary(role, name):
    cls = imported(role, name)
    assert issubclass(cls, ANCESTORS[role])
    assert catalogue.choices(role)[name].summary == inspect.getdoc(cls).partition("\n")[0]


@pytest.mark.parametrize(("role", "name"), ALL)
def test_help_shows_all_options_of_a_class(role, name, run):
    cls = imported(role, name)
    assert set(catalogue.parameters(name)) == set(defaults_of(cls))
    out = run("help", name).out
    assert all(f".{option} " in out for option in defaults_of(cls))


@pytest.mark.parametrize("role", ANCESTORS)
def test_every_exported_class_of_a_role_is_listed(role):
    folder = catalogue.ROLES[role].folder.removesuffix(".py")
    module = import_module(f"imgsynth.{folder}")
    exported = getattr(module, "__all__", dir(module))
    classes = [getattr(module, n) for n in exported if inspect.isclass(getattr(module, n))]
    own = [c for c in classes if issubclass(c, ANCESTORS[role]) and "imgsynth" in c.__module__]
    own = [c for c in own if not c.__name__.startswith("_")]
    assert {c.__name__ for c in own} - catalogue._BASES == set(catalogue.choices(role))


def test_the_trainers_options_are_those_of_lightning():
    entry = catalogue.trainer()
    names = list(inspect.signature(Trainer.__init__).parameters)[1:]
    assert [p.name for p in entry.parameters] == names
    assert all(p.text for p in entry.parameters if p.name in {"devices", "precision", "max_steps"})


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ("generator", "DCGANGenerator"),
        ("discriminator", "MLPDiscriminator"),
        ("generator_optimizer", "RMSprop"),
        ("discriminator_schedule", "CosineDecay"),
        ("augment", "RandomTranslation"),
        ("model", "WGANGP"),
        ("extractor", "PixelExtractor"),
        ("likelihood", "Gaussian"),
        ("encoder", "ConvEncoder"),
        ("data", "Digits"),
    ],
)
def test_what_fits_an_argument_is_found_by_its_name(parameter, expected):
    assert expected in catalogue.fitting(parameter)
