"""Extractors: what they accept, and that nothing around them changes their features."""

import copy
import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_image
from torch import nn

from imgsynth.images import from_uint8
from imgsynth.metrics.extractor import Extractor, ModuleExtractor, check_uint8, hash_of
from imgsynth.metrics.resize import torch_antialias


def _photographs(size=24, num=4):
    picture = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)
    return torch.stack([picture[:, 100:][:, :size, i * 40 :][:, :, :size] for i in range(num)])


def _network(num=5):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(),
        nn.Conv2d(8, num, 3),
    )


class Recorder(nn.Module):
    """Keeps what it is given and the precision it would compute in."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        backends = torch.backends
        self.seen.append(
            {
                "x": x,
                "autocast": torch.is_autocast_enabled("cpu"),
                "grad": torch.is_grad_enabled(),
                "precision": {
                    backends.cuda.matmul.fp32_precision,
                    backends.cudnn.conv.fp32_precision,
                    backends.mkldnn.matmul.fp32_precision,
                    backends.mkldnn.conv.fp32_precision,
                },
            }
        )
        return x.flatten(1)


@pytest.fixture
def _relaxed():
    """A caller who has allowed everything that is fast and inexact."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


# -- what is accepted -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 4, 4), np.uint8), "real: .*uint8 tensor of shape .*got ndarray"),
        (torch.zeros(1, 3, 4, 4), "real: scores take uint8, got torch.float32; .*to_uint8"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "whole numbers of 8 bits, got torch.int64"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"got \(3, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), r"at least one image, got \(0, 3, 4, 4\)"),
    ],
)
def test_anything_but_eight_bit_images_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        check_uint8(images, "real")


def test_an_extractor_checks_its_images():
    with pytest.raises(ValueError, match=r"images: scores take uint8, got torch\.float32"):
        ModuleExtractor(_network(), size=16)(torch.zeros(1, 3, 16, 16))


def test_gray_images_are_repeated():
    extractor = ModuleExtractor(_network(), size=16)
    gray = torch.from_numpy(load_digits().images[:3] * 15).to(torch.uint8)[:, None]
    features, _ = extractor(gray)
    torch.testing.assert_close(features, extractor(gray.repeat(1, 3, 1, 1))[0])


def test_images_of_four_channels_are_refused():
    with pytest.raises(ValueError, match="images of 3 channels, or gray ones, got 4"):
        ModuleExtractor(_network(), size=16)(torch.zeros(1, 4, 16, 16, dtype=torch.uint8))


def test_a_network_for_gray_images_refuses_colour():
    extractor = ModuleExtractor(nn.Conv2d(1, 2, 3), size=16, channels=1)
    assert extractor(torch.zeros(1, 1, 16, 16, dtype=torch.uint8))[0].shape == (1, 2)
    with pytest.raises(ValueError, match="images of 1 channels, or gray ones, got 3"):
        extractor(_photographs())


# -- what a module is given and may return ----------------------------------------------------


def test_a_module_sees_floats_from_minus_one_to_one():
    images = _photographs(4)
    extractor = ModuleExtractor(nn.Flatten(), num_features=48)
    features, logits = extractor(images)
    assert torch.equal(features, from_uint8(images).flatten(1))
    assert logits is None
    assert extractor.num_logits == 0


def test_a_module_sees_images_of_the_size_it_asked_for():
    images = _photographs(24)
    features, _ = ModuleExtractor(nn.Flatten(), size=7)(images)
    expected = torch_antialias(images, 7) / 127.5 - 1
    torch.testing.assert_close(features, expected.flatten(1))


def test_maps_are_averaged_over_their_places():
    network = _network()
    features, _ = ModuleExtractor(network, size=24)(_photographs(24))
    with torch.no_grad():
        maps = network.eval()(from_uint8(_photographs(24)))
    torch.testing.assert_close(features, maps.mean((2, 3)))


def test_the_number_of_features_is_found():
    assert ModuleExtractor(_network(7), size=16).num_features == 7


def test_without_a_size_the_number_of_features_must_be_given():
    with pytest.raises(ValueError, match=r"pass size=\.\.\. to resize images, or num_features"):
        ModuleExtractor(_network())


def test_a_module_that_cannot_take_the_images_is_named():
    with pytest.raises(ValueError, match=r"Linear cannot take images of shape \(2, 3, 16, 16\)"):
        ModuleExtractor(nn.Linear(3, 4), size=16)


class Returns(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output(x)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: (x, x), "returns a float tensor, got tuple"),
        (lambda x: x.flatten(1).argmax(1), "returns a float tensor, got torch.int64"),
        (lambda x: x.mean((1, 2, 3)), r"expected features of shape \(2, d\) .*got \(2,\)"),
        (lambda x: x.flatten(1)[:1], r"expected features of shape \(2, d\) .*got \(1, 768\)"),
    ],
)
def test_nonsense_from_a_module_is_refused(output, message):
    with pytest.raises(ValueError, match=message):
        ModuleExtractor(Returns(output), size=16)


def test_another_number_of_features_than_promised_is_refused():
    extractor = ModuleExtractor(_network(5), num_features=6)
    with pytest.raises(ValueError, match=r"expected features of shape \(4, 6\) .*got \(4, 5\)"):
        extractor(_photographs())


def test_features_that_are_not_numbers_are_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    extractor = ModuleExtractor(network, num_features=3)
    images = _photographs(2)
    assert extractor(images)[0].isfinite().all()
    extractor.module[1].bias[1] = torch.nan
    with pytest.raises(ValueError, match="features of 4 of 4 images are NaN or infinite"):
        extractor(images)


def test_an_unknown_resize_is_refused_at_once():
    with pytest.raises(ValueError, match="no resize 'lanczos'"):
        ModuleExtractor(_network(), size=16, resize="lanczos")


# -- it never learns --------------------------------------------------------------------------


def test_an_extractor_stays_in_evaluation_mode():
    extractor = ModuleExtractor(_network(), size=16)
    before = extractor(_photographs())[0]
    extractor.train()
    assert not any(module.training for module in extractor.modules())
    assert torch.equal(extractor(_photographs())[0], before)


def test_no_gradient_reaches_an_extractor():
    extractor = ModuleExtractor(_network(), size=16)
    assert not any(p.requires_grad for p in extractor.parameters())
    assert not extractor(_photographs())[0].requires_grad


def test_a_network_in_training_may_be_given_and_goes_on():
    network = _network().train()
    state = copy.deepcopy(network.state_dict())
    ModuleExtractor(network, size=16)(_photographs())
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)


class Careless(Extractor):
    """A subclass that forgets to freeze itself."""

    name, num_features = "careless", 5

    def __init__(self):
        super().__init__()
        self.network = _network()

    def extract(self, images):
        return self.network(from_uint8(images)).mean((2, 3)), None


def test_a_subclass_that_forgets_to_freeze_is_frozen_when_it_is_used():
    extractor = Careless()
    assert torch.equal(extractor(_photographs())[0], extractor(_photographs())[0])
    assert not any(p.requires_grad for p in extractor.parameters())


def test_a_subclass_without_extract_is_told_so():
    with pytest.raises(TypeError, match=r"Extractor must define extract\(images\)"):
        Extractor()(_photographs())


# -- the caller's context ---------------------------------------------------------------------


@pytest.mark.usefixtures("_relaxed")
def test_a_module_computes_in_plain_float32_whatever_the_caller_allows():
    extractor = ModuleExtractor(Recorder(), num_features=48)
    with torch.autocast("cpu", torch.bfloat16):
        extractor(_photographs(4))
        assert torch.is_autocast_enabled("cpu")
    (seen,) = extractor.module.seen
    assert seen["x"].dtype == torch.float32
    assert not seen["autocast"]
    assert not seen["grad"]
    assert seen["precision"] == {"ieee"}


@pytest.mark.usefixtures("_relaxed")
def test_features_do_not_depend_on_the_caller():
    network = nn.Sequential(nn.Flatten(), nn.Linear(1728, 64), nn.ReLU(), nn.Linear(64, 8))
    extractor = ModuleExtractor(network, num_features=8)
    inside = {}
    with torch.autocast("cpu", torch.bfloat16):
        inside["autocast"] = extractor(_photographs())[0]
    inside["medium"] = extractor(_photographs())[0]
    with torch.no_grad():
        inside["no_grad"] = extractor(_photographs())[0]
    torch.set_float32_matmul_precision("highest")
    expected = extractor(_photographs())[0]
    assert expected.dtype == torch.float32
    for found in inside.values():
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("_relaxed")
def test_the_callers_precision_is_put_back_also_after_an_error():
    def now():
        return (
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.mkldnn.matmul.fp32_precision,
        )

    before = now()
    extractor = ModuleExtractor(_network(), num_features=5)
    extractor(_photographs())
    assert now() == before
    with pytest.raises(RuntimeError):
        extractor(_photographs(1))  # smaller than the kernel
    assert now() == before
    assert before[0] == "medium"


# -- who it is --------------------------------------------------------------------------------


def test_the_identity_is_plain_data_and_keeps():
    identity = ModuleExtractor(_network(), size=16).identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity == ModuleExtractor(_network(), size=16).identity()
    assert identity["name"].endswith("Sequential")
    assert identity["size"] == 16


def _with_one_weight_changed(network):
    network = copy.deepcopy(network)
    network[4].weight.data[0, 0, 0, 0] += 1e-7
    return network


def test_the_identity_changes_with_everything_that_changes_a_score():
    network = _network()
    other = copy.deepcopy(network)
    other[2] = nn.Tanh()
    extractors = [
        ModuleExtractor(network, size=16),
        ModuleExtractor(network, size=17),
        ModuleExtractor(network, num_features=5),
        ModuleExtractor(network, size=16, resize="pil-bicubic"),
        ModuleExtractor(_with_one_weight_changed(network), size=16),
        ModuleExtractor(other, size=16),
    ]
    identities = {json.dumps(extractor.identity()) for extractor in extractors}
    assert len(identities) == len(extractors)


def test_where_a_function_lies_in_memory_does_not_count():
    one, two = (ModuleExtractor(nn.Sequential(Named(lambda x: x)), size=4) for _ in range(2))
    assert one.identity() == two.identity()


class Named(Returns):
    def extra_repr(self):
        return repr(self.output)

    def forward(self, x):
        return self.output(x).flatten(1)


def test_the_hash_changes_with_name_type_shape_and_any_bit():
    weight = torch.arange(6.0).reshape(2, 3)
    bit = weight.clone()
    bit.view(torch.int32)[1, 1] ^= 1
    different = [
        {"a": weight},
        {"b": weight},
        {"a": weight.reshape(3, 2)},
        {"a": weight.view(torch.int32)},
        {"a": bit},
        {"a": weight, "b": weight},
        {},
    ]
    assert len({hash_of(state) for state in different}) == len(different)


def test_the_hash_ignores_the_order_of_names_and_of_bytes_in_memory():
    one = {"a": torch.randn(2, 3, 4, 5), "b": torch.tensor(3)}
    two = {"b": one["b"], "a": one["a"].contiguous(memory_format=torch.channels_last)}
    assert hash_of(one) == hash_of(two)
    assert len(hash_of(one)) == 16


def test_the_hash_of_a_module_counts_buffers():
    network = _network()
    before = hash_of(network)
    network[1].running_mean[0] += 1
    assert hash_of(network) != before
