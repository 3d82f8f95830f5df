"""Objects as plain data and back."""

import copy
import dataclasses
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from imgsynth.augment import RandomTranslation
from imgsynth.describe import Described, build, class_path, describe
from imgsynth.networks import DCGANGenerator, MLPGenerator


class Net(Described, nn.Module):
    """A network of the tests, outside the package."""

    def __init__(self, width: int = 8, *, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.width = width
        self.inner = inner


class Wider(Net):
    """A subclass that forwards keywords untouched."""

    def __init__(self, extra: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.extra = extra


@dataclasses.dataclass(frozen=True)
class Settings:
    """An optimiser factory's shape."""

    rate: float = 0.5
    betas: tuple[float, float] = (0.0, 0.99)


HERE = __name__


@pytest.fixture
def importable(monkeypatch):
    """Let this test module be imported by its name, whatever the import mode."""
    monkeypatch.setitem(sys.modules, HERE, SimpleNamespace(Net=Net, Settings=Settings))


@pytest.mark.parametrize("value", [None, True, 3, -0.5, "text", [1, "a", None], {"a": [1, 2]}])
def test_plain_data_stays_what_it_is(value):
    assert describe(value) == value
    assert build(describe(value)) == value


def test_tuples_become_lists_and_paths_strings():
    assert describe({"a": (1, (2, 3)), "b": Path("x") / "y"}) == {"a": [1, [2, 3]], "b": "x/y"}


def test_a_network_is_described_by_its_arguments_and_todays_defaults():
    # A default may change after a checkpoint was written, which then must not change with it.
    description = describe(MLPGenerator((1, 8, 8), width=16))
    assert description == {
        "class_path": "imgsynth.networks.MLPGenerator",
        "init_args": {
            "image_shape": [1, 8, 8],
            "num_classes": None,
            "latent_dim": 100,
            "width": 16,
            "depth": 3,
            "class_dim": 32,
        },
    }


def test_positional_arguments_keywords_and_forwarded_keywords_are_recorded():
    assert describe(Net(16))["init_args"] == {"width": 16, "inner": None}
    assert describe(Wider(3, width=4))["init_args"] == {"extra": 3, "width": 4}
    assert describe(Net())["init_args"] == {"width": 8, "inner": None}


def test_wrong_arguments_raise_pythons_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'widht'"):
        Net(widht=3)


def test_a_description_survives_json_and_weights_only_loading():
    description = describe(Net(4, inner=MLPGenerator((1, 8, 8))))
    assert json.loads(json.dumps(description)) == description
    buffer = io.BytesIO()
    torch.save(description, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == description


@pytest.mark.parametrize(
    "network",
    [
        MLPGenerator((1, 8, 8), 10, width=8),
        DCGANGenerator(image_shape=(3, 16, 16), width=4, full_size_map=True),
        RandomTranslation(2),
    ],
)
def test_a_rebuilt_network_has_the_same_class_arguments_and_weights_shapes(network):
    again = build(json.loads(json.dumps(describe(network))))
    assert type(again) is type(network)
    assert describe(again) == describe(network)
    again.load_state_dict(network.state_dict())


def test_nested_networks_are_rebuilt(importable):
    again = build(describe(Net(2, inner=Net(3, inner=RandomTranslation(1)))), trusted=(HERE,))
    assert (again.width, again.inner.width, again.inner.inner.max_shift) == (2, 3, 1)


def test_a_dataclass_is_rebuilt(importable):
    assert build(describe(Settings(rate=0.1)), trusted=(HERE,)).rate == 0.1


def test_a_dataclass_is_described_with_its_defaults():
    assert describe(Settings(rate=0.1))["init_args"] == {"rate": 0.1, "betas": [0.0, 0.99]}


def test_a_copy_is_described_like_its_original():
    net = MLPGenerator((1, 8, 8), width=16)
    assert describe(copy.deepcopy(net)) == describe(net)


def test_changing_a_list_after_construction_does_not_change_the_description():
    shape = [1, 8, 8]
    net = MLPGenerator(shape)
    shape[0] = 99
    assert describe(net)["init_args"]["image_shape"] == [1, 8, 8]


def test_an_undescribable_argument_is_named_when_it_is_missed(importable):
    description = describe(Net(2, inner=nn.Linear(1, 1)))
    assert list(description["init_args"]["inner"]) == ["not_described"]
    with pytest.raises(ValueError, match=r"argument 'inner' .* 'torch.nn.*Linear'.*inner=\.\.\."):
        build(description, trusted=(HERE,))


def test_an_override_takes_the_place_of_a_described_argument():
    description = describe(MLPGenerator((1, 8, 8), width=16))
    assert build(description, image_shape=(3, 4, 4)).image_shape == (3, 4, 4)


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "torch.nn.Linear", "eval"])
def test_classes_outside_the_package_are_not_imported_unless_trusted(path):
    with pytest.raises(ValueError, match="is not part of imgsynth"):
        build({"class_path": path, "init_args": {}})


@pytest.mark.parametrize(
    "path", ["imgsynth.describe.Path", "imgsynth.describe.importlib", "imgsynth.describe.build"]
)
def test_what_merely_lies_in_the_package_is_not_called(path):
    with pytest.raises(ValueError, match=r"neither an nn\.Module nor a dataclass"):
        build({"class_path": path, "init_args": {}})


def test_a_class_imported_into_the_package_from_elsewhere_is_not_built(monkeypatch):
    monkeypatch.setattr("imgsynth.networks.dcgan.Guest", nn.Linear, raising=False)
    with pytest.raises(ValueError, match=r"really a class of torch\.nn"):
        build({"class_path": "imgsynth.networks.dcgan.Guest", "init_args": {}})


@pytest.mark.parametrize("path", ["imgsynth.networks.Gone", "imgsynth.gone.Net", "imgsynth", ""])
def test_a_class_that_is_not_there_is_named(path):
    with pytest.raises(ValueError, match=r"cannot be imported|not part of imgsynth"):
        build({"class_path": path, "init_args": {}})


def test_a_trusted_package_is_imported():
    description = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2}}
    layer = build(description, trusted=("torch",), out_features=3)
    assert layer.weight.shape == (3, 2)


def test_a_class_path_is_the_shortest_public_one():
    assert class_path(MLPGenerator) == "imgsynth.networks.MLPGenerator"
    assert class_path(Net) == f"{HERE}.Net"


class Tagged(Wider):
    """Passes its positional arguments on, as authors of methods do."""

    def __init__(self, *args, tag: str = "t", **kwargs):
        super().__init__(*args, **kwargs)
        self.tag = tag


def test_positional_arguments_that_are_only_passed_on_are_named_by_the_next_class():
    assert describe(Tagged(3, width=4, tag="u"))["init_args"] == {
        "tag": "u",
        "extra": 3,
        "width": 4,
    }


def test_numbers_of_numpy_become_plain_ones():
    described = describe([np.float64(0.5), np.float32(0.5), np.int64(3)])
    assert described == [0.5, 0.5, 3]
    assert [type(value) for value in described] == [float, float, int]
