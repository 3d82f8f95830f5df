"""Weights from files: whatever is in them, nothing runs and the message says what is wrong."""

import pickle

import pytest
import torch
from torch import nn

from imgsynth.metrics.weights import check_layers, read_weights


class Harmful:
    """Would write a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def _shapes(network):
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def test_weights_come_back_as_they_were(tmp_path):
    state = nn.Linear(3, 2).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    read = read_weights(tmp_path / "weights.pth", "a layer")
    torch.testing.assert_close(read, dict(state), rtol=0, atol=0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pth; expected a layer"):
        read_weights(tmp_path / "none.pth", "a layer")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_weights(tmp_path, "a layer")


@pytest.mark.parametrize(
    "content", [b"", b"<html>Not found</html>", b"\x80\x02garbage", b"PK\x03\x04"]
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth holds something other .*expected a layer"):
        read_weights(path, "a layer")


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(nn.Linear(100, 100).state_dict(), path)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ValueError, match="or is damaged; expected a layer"):
        read_weights(path, "a layer")


@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_no_object_of_a_file_is_opened(tmp_path, save):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    content = {"weight": torch.zeros(1), "more": Harmful(trace)}
    if save == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="No object in it was opened"):
        read_weights(path, "a layer")
    assert not trace.exists()


@pytest.mark.parametrize("content", [torch.zeros(2), [torch.zeros(2)], {"epoch": 3}])
def test_a_checkpoint_of_something_else_is_named(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="holds no mapping of names to tensors"):
        read_weights(tmp_path / "weights.pth", "a layer")


def test_the_layers_of_the_same_network_are_accepted(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    state = network.state_dict()
    check_layers(tmp_path, state, _shapes(network), "ours")
    del state["1.num_batches_tracked"]
    check_layers(tmp_path, state, _shapes(network), "ours")


def test_missing_unknown_and_misshapen_layers_are_named(tmp_path):
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    state = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 2, bias=False)).state_dict()
    state["head"] = torch.zeros(1)
    with pytest.raises(ValueError, match="another network than ours") as error:
        check_layers(tmp_path, state, _shapes(network), "ours")
    said = str(error.value)
    assert "missing: 1.bias, 2.bias, 2.weight" in said
    assert "unknown: head" in said
    assert "of another shape: 0.bias (3,) for (2,), 0.weight (3, 2) for (2, 2)" in said


def test_of_many_names_the_first_are_said(tmp_path):
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    with pytest.raises(ValueError, match=r"missing: 0\.bias, 0\.weight, 1\.bias and 3 more\)"):
        check_layers(tmp_path, {}, _shapes(network), "ours")
