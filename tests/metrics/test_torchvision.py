"""Networks of torchvision as extractors, against the networks themselves."""

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import nn
from torchvision import models
from torchvision.transforms.v2 import functional

from imgsynth.describe import build, describe
from imgsynth.metrics.torchvision import TorchvisionExtractor

CAFFE = {"mean": (104, 117, 123), "std": (1, 1, 1), "bgr": True}


def _photographs(size=64):
    pictures = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    cuts = [picture[60 : 60 + size, 150 : 150 + size] for picture in pictures]
    return torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).contiguous()


def _saved(name, folder, **options):
    torch.manual_seed(0)
    network = models.get_model(name, weights=None, **options).eval()
    torch.save(network.state_dict(), folder / f"{name}.pth")
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def resnet(folder):
    """Seven classes, as somebody may have trained it."""
    return _saved("resnet18", folder, num_classes=7)


@pytest.fixture(scope="module")
def squeezenet(folder):
    return _saved("squeezenet1_1", folder)


def test_features_are_what_the_classifier_sees_of_normalised_images(resnet, folder):
    images = _photographs()
    features, logits = TorchvisionExtractor("resnet18", folder / "resnet18.pth", size=64)(images)
    pixels = functional.normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = nn.Sequential(*list(resnet.children())[:-1])(pixels).flatten(1)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, resnet(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("resnet")
def test_the_number_of_classes_is_read_from_the_file(folder):
    extractor = TorchvisionExtractor("resnet18", folder / "resnet18.pth", size=64)
    assert (extractor.num_features, extractor.num_logits) == (512, 7)
    assert extractor.name == "torchvision/resnet18"
    assert not extractor.genuine


def test_maps_before_a_classifier_of_convolutions_are_averaged(squeezenet, folder):
    images = _photographs()
    extractor = TorchvisionExtractor(
        "squeezenet1_1", folder / "squeezenet1_1.pth", size=64, **CAFFE
    )
    features, logits = extractor(images)
    pixels = images.flip(1) - torch.tensor([104.0, 117.0, 123.0])[:, None, None]
    with torch.no_grad():
        expected = squeezenet.features(pixels).mean((2, 3))
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits, squeezenet(pixels), rtol=1e-4, atol=1e-4)
    assert features.std() > 0.1


def test_another_layers_input_may_be_the_features(resnet, folder):
    path = folder / "resnet18.pth"
    features, _ = TorchvisionExtractor("resnet18", path, layer="layer3", size=64)(_photographs())
    pixels = functional.normalize(
        _photographs() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    with torch.no_grad():
        expected = nn.Sequential(*list(resnet.children())[:6])(pixels).mean((2, 3))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("squeezenet")
def test_images_are_resized(folder):
    path = folder / "squeezenet1_1.pth"
    features, _ = TorchvisionExtractor("squeezenet1_1", path, size=48)(_photographs(96))
    half = functional.resize(_photographs(96).float(), [48, 48], antialias=True)
    rounded, _ = TorchvisionExtractor("squeezenet1_1", path, size=48)(half.round().to(torch.uint8))
    assert (features - rounded).norm() < 0.02 * features.norm()
    cut, _ = TorchvisionExtractor("squeezenet1_1", path, size=48)(_photographs(48))
    assert (features - cut).norm() > 0.1 * features.norm()


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet", "regnet_y_400mf"])
def test_networks_of_every_build_work(name, tmp_path, recwarn):
    # torchvision's own weights of GoogLeNet come with transform_input=True
    options = {"init_weights": False, "transform_input": True} if name == "googlenet" else {}
    network = _saved(name, tmp_path, num_classes=5, **options)
    extractor = TorchvisionExtractor(name, tmp_path / f"{name}.pth", size=64)
    features, logits = extractor(_photographs())
    assert features.shape == (2, extractor.num_features)
    assert logits.shape == (2, 5)
    pixels = extractor._prepared(_photographs())
    with torch.no_grad():
        torch.testing.assert_close(logits, network(pixels), rtol=1e-4, atol=1e-5)
    assert not [w for w in recwarn if "imgsynth" in str(w.filename)]


@pytest.mark.usefixtures("squeezenet")
def test_the_identity_changes_with_all_that_is_done_to_images(folder):
    path = folder / "squeezenet1_1.pth"
    options = [{}, {"size": 48}, {"bgr": True}, CAFFE, {"layer": "features.3"}, {"std": (1, 1, 1)}]
    identities = []
    for option in options:
        identity = TorchvisionExtractor("squeezenet1_1", path, **({"size": 64} | option)).identity()
        assert json.loads(json.dumps(identity)) == identity
        identities.append(json.dumps(identity))
    assert len(set(identities)) == len(options)


@pytest.mark.usefixtures("squeezenet")
def test_it_can_be_described_and_built_again(folder):
    path = folder / "squeezenet1_1.pth"
    extractor = TorchvisionExtractor("squeezenet1_1", path, size=64, **CAFFE)
    assert build(describe(extractor)).identity() == extractor.identity()


@pytest.mark.usefixtures("resnet")
def test_no_random_number_is_drawn(folder):
    before = torch.get_rng_state()
    TorchvisionExtractor("resnet18", folder / "resnet18.pth", size=64)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("squeezenet")
def test_it_is_frozen(folder):
    extractor = TorchvisionExtractor("squeezenet1_1", folder / "squeezenet1_1.pth", size=64)
    assert not any(p.requires_grad for p in extractor.parameters())
    assert not any(layer.training for layer in extractor.train().modules())


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("squeezenet", "resnet")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet81", "resnet18.pth"), "network 'resnet81'; did you mean resnet"),
        (("squeezenet1_1", "resnet18.pth"), "of another network than torchvision's squeezenet1_1"),
        (("resnet34", "resnet18.pth"), "another network than torchvision's resnet34 .missing: lay"),
        (("resnet18", "resnet18.pth", "layer5"), "no layer 'layer5'; it has layer"),
        (("resnet18", "resnet18.pth", None, 64, "nearest"), "no resize 'nearest'"),
        (("resnet18", "resnet18.pth", None, 64, "pil-bicubic", (1, 1)), "three values each, got"),
    ],
)
def test_a_wrong_argument_is_named(folder, arguments, message):
    network, name, *others = arguments
    with pytest.raises(ValueError, match=message):
        TorchvisionExtractor(network, folder / name, *others)


def test_a_missing_file_is_named_and_nothing_is_downloaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pth; expected the state_dict of"):
        TorchvisionExtractor("resnet18", tmp_path / "none.pth")
