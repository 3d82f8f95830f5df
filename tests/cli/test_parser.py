from pathlib import Path

import pytest
import yaml
from torch import nn

from imgsynth.cli.errors import UsageError
from imgsynth.cli.parser import defaults_of, dump, fill, make, parse, typed
from imgsynth.data import Digits
from imgsynth.methods import WGANGP, HingeGAN
from imgsynth.optim import AdamW

MODEL = [
    ("model", "HingeGAN"),
    ("model.generator", "MLPGenerator"),
    ("model.discriminator", "MLPDiscriminator"),
    ("data", "Digits"),
]


def arguments_of(config, *names):
    node = config["model"]
    for name in names:
        node = node["init_args"][name]
    return node["init_args"]


def test_options_may_come_in_any_order():
    options = [("model.generator.width", "8"), ("seed", "3"), *MODEL]
    assert parse([], options) == parse([], options[::-1])
    assert arguments_of(parse([], options), "generator")["width"] == 8


def test_later_configurations_win_and_options_win_over_them(tmp_path):
    for number in (1, 2):
        (tmp_path / f"{number}.yaml").write_text(f"seed: {number}\nimages: {number}k\n")
    files = [tmp_path / "1.yaml", tmp_path / "2.yaml"]
    config = parse(files, [*MODEL, ("images", "5k")])
    assert (config["seed"], config["images"]) == (2, "5k")


def test_another_class_has_its_own_defaults_not_those_of_the_default_instance():
    config = parse([], [*MODEL, ("model.generator_optimizer", "AdamW")])
    assert arguments_of(config, "generator_optimizer") == defaults_of(AdamW)
    assert arguments_of(config, "generator_optimizer")["weight_decay"] == 1e-2


def test_one_option_of_a_default_instance_leaves_the_others_as_they_are():
    config = parse([], [*MODEL, ("model", "WGANGP"), ("model.generator_optimizer.lr", "1e-3")])
    default = defaults_of(WGANGP)["generator_optimizer"]["init_args"]
    assert default["beta1"] == 0.0
    assert arguments_of(config, "generator_optimizer") == {**default, "lr": 1e-3}


def test_what_a_recipe_says_is_kept_under_another_class_if_it_fits_and_that_is_said(
    tmp_path, capsys
):
    (tmp_path / "a.yaml").write_text(
        "model:\n  class_path: HingeGAN\n  init_args:\n    generator:\n"
        "      class_path: DCGANGenerator\n      init_args: {width: 8, full_size_map: true}\n"
        "    discriminator: MLPDiscriminator\ndata: Digits\n"
    )
    config = parse([tmp_path / "a.yaml"], [("model.generator", "MLPGenerator")])
    assert arguments_of(config, "generator")["width"] == 8
    assert capsys.readouterr().err == (
        "--model.generator: MLPGenerator instead of DCGANGenerator; kept width=8; "
        "dropped full_size_map\n"
    )


def test_forwarded_arguments_of_every_base_are_options():
    names = set(defaults_of(HingeGAN))
    assert {"generator", "latent_dim", "discriminator_steps", "accumulate", "ema_half_life"} < names


def test_the_parts_are_filled_from_the_data_where_nobody_said_otherwise():
    config = parse([], [*MODEL, ("model.discriminator.num_classes", "0")])
    fill(config["model"], Digits(size=16))
    assert arguments_of(config, "generator")["image_shape"] == [1, 16, 16]
    assert arguments_of(config, "generator")["num_classes"] == 10
    assert arguments_of(config, "discriminator")["num_classes"] == 0


def test_a_filled_configuration_builds_the_method_and_its_parts():
    config = parse([], [*MODEL, ("model.generator.width", "4"), ("model.generator.depth", "1")])
    fill(config["model"], Digits())
    method = make(typed(config).model)
    assert isinstance(method, HingeGAN)
    assert method.generator.image_shape == (1, 8, 8)
    assert method.num_classes == 10


def test_a_module_of_torch_can_be_a_part():
    config = parse([], [*MODEL, ("model.augment", "torch.nn.Identity")])
    fill(config["model"], Digits())
    assert isinstance(make(typed(config).model).augment, nn.Identity)


def test_a_dumped_configuration_is_read_as_the_same(tmp_path):
    config = parse([], [*MODEL, ("images", "5k"), ("trainer.devices", "1")])
    fill(config["model"], Digits())
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    again = parse([file], [])
    assert dump(again) == dump(config)
    assert yaml.safe_load(dump(config))["model"]["class_path"] == "imgsynth.methods.HingeGAN"


def test_an_error_names_the_file_it_is_in(tmp_path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("model:\n  class_path: HingeGAN\n  init_args: {generator: MLPGenerator}\n")
    bad.write_text("model:\n  init_args: {discriminator: MLPDiscriminator, accumulate: x}\n")
    with pytest.raises(UsageError) as caught:
        parse([good, bad], [("data", "Digits")])
    assert caught.value.lines[0].startswith(f"--model.accumulate (in {bad}) expects a whole number")


def test_errors_of_constructors_arrive_as_they_were_raised():
    config = parse([], [*MODEL, ("model.accumulate", "0")])
    fill(config["model"], Digits())
    with pytest.raises(ValueError, match=r"^accumulate must be at least 1, got 0\.$"):
        make(typed(config).model)


def test_classes_of_the_working_directory_are_found(tmp_path, monkeypatch):
    Path(tmp_path, "my_parser_package.py").write_text(
        "from imgsynth.methods import HingeGAN\n\nclass Mine(HingeGAN):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = parse([], [*MODEL, ("model", "my_parser_package.Mine")])
    assert config["model"]["class_path"] == "my_parser_package.Mine"
