"""Our Inception against those of torch-fidelity, pytorch-fid and torchmetrics, same weights.

The weights are random, with batch statistics of photographs, so that activations neither die nor
explode; the genuine ones cannot be carried.
"""

import hashlib
import json
import urllib.error
from pathlib import Path

import cleanfid.resize
import numpy as np
import pytest
import pytorch_fid.inception
import torch
from sklearn.datasets import load_digits, load_sample_image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import NoTrainInceptionV3
from torchvision.models import inception_v3

from imgsynth.describe import build, describe
from imgsynth.metrics import inception
from imgsynth.metrics.extractor import hash_of
from imgsynth.metrics.inception import InceptionExtractor
from imgsynth.metrics.presets import PRESETS

ROUNDING = 2e-6
"""Two orders of the same float32 operations differ by so much, relative to the features' norm."""


def _photographs(size, num=2):
    pictures = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    cuts = [picture[60 : 60 + size, 150 : 150 + size] for picture in pictures]
    return torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2)[:num].contiguous()


def _random_state():
    torch.manual_seed(0)
    network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.1, 0.3)
            nn.init.normal_(layer.bias, 0.3, 0.3)
            layer.momentum = None
    nn.init.normal_(network.fc.bias)
    with torch.no_grad():
        network.train()(_photographs(299) / 127.5 - 1)
    return network.state_dict()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(_random_state(), path)
    return path


@pytest.fixture(scope="module")
def state(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def ours(path):
    return InceptionExtractor(path, expected=None)


@pytest.fixture(scope="module")
def fidelity(path):
    wanted = ["2048", "logits_unbiased", "logits"]
    return FeatureExtractorInceptionV3("theirs", wanted, feature_extractor_weights_path=str(path))


@pytest.fixture(scope="module")
def seitzer(path, state):
    """pytorch-fid's network, which takes pixels that are ready."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: state)
        return pytorch_fid.inception.InceptionV3().eval()


@pytest.fixture
def _like(ours):
    """Lets a test change how the module's extractor prepares images, instead of building anew."""
    before = ours.resize, ours.normalisation, ours.logits_bias
    yield
    ours.resize, ours.normalisation, ours.logits_bias = before


def _set(ours, preset):
    ours.resize, ours.normalisation = preset.resize, preset.normalisation
    ours.logits_bias = preset.logits_bias
    return ours


def _deviation(found, expected):
    return float((found - expected).norm() / expected.norm())


# -- the same features ------------------------------------------------------------------------


def test_features_and_logits_are_torch_fidelitys(ours, fidelity):
    images = _photographs(64)
    features, logits = ours(images)
    their_features, their_logits, _ = fidelity(images)
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    assert _deviation(features, their_features) < ROUNDING
    assert _deviation(logits, their_logits) < ROUNDING
    # so that the comparison means something
    assert _deviation(features[0], features[1]) > 0.05
    assert _deviation(logits[0], logits[1]) > 0.05


def test_every_operation_is_that_of_pytorch_fids_network(state, seitzer):
    # In float64 nothing but a different operation can differ by more than this.
    wide = {k: v.double() for k, v in state.items() if v.is_floating_point()}
    pixels = torch.from_numpy(load_sample_image("china.jpg")[:151, :139].copy()).permute(2, 0, 1)[
        None
    ]
    pixels = pixels.double() / 127.5 - 1
    network = inception._Inception(wide).eval()
    seitzer.resize_input, seitzer.normalize_input = False, False
    try:
        with torch.no_grad():
            expected = seitzer.double()(pixels)[0].flatten(1)
            found = network(pixels.contiguous(memory_format=torch.channels_last))
    finally:
        seitzer.float()
        seitzer.resize_input, seitzer.normalize_input = True, True
    assert found.dtype == torch.float64
    assert _deviation(found, expected) < 1e-12


@pytest.mark.usefixtures("_like")
def test_the_preset_pytorch_fid_has_pytorch_fids_features(ours, seitzer):
    images = _photographs(320, num=1)
    features, _ = _set(ours, PRESETS["pytorch-fid"])(images)
    with torch.no_grad():
        expected = seitzer(images / 255)[0].flatten(1)
    assert _deviation(features, expected) < ROUNDING


@pytest.mark.usefixtures("_like")
def test_the_preset_torchmetrics_has_torchmetrics_features(ours, path):
    theirs = NoTrainInceptionV3("theirs", ["2048"], str(path))
    images = _photographs(320, num=1)
    features, _ = _set(ours, PRESETS["torchmetrics"])(images)
    assert _deviation(features, theirs(images)) < ROUNDING


@pytest.mark.usefixtures("_like")
def test_the_preset_clean_fid_has_the_features_of_clean_fids_pixels(ours, seitzer):
    images = _photographs(320, num=1)
    features, _ = _set(ours, PRESETS["clean-fid"])(images)
    pixels = cleanfid.resize.build_resizer("clean")(images[0].permute(1, 2, 0).numpy())
    seitzer.resize_input, seitzer.normalize_input = False, False
    with torch.no_grad():
        ready = (torch.from_numpy(pixels).permute(2, 0, 1)[None] - 128) / 128
        expected = seitzer(ready)[0].flatten(1)
    seitzer.resize_input, seitzer.normalize_input = True, True
    assert _deviation(features, expected) < ROUNDING


@pytest.mark.usefixtures("_like")
def test_logits_have_a_bias_if_asked_for(ours, fidelity):
    images = _photographs(32, num=1)
    _, logits = _set(ours, PRESETS["studiogan"])(images)
    ours.resize, ours.normalisation = "tf1-bilinear", "(x-128)/128"
    _, biased = ours(images)
    _, _, expected = fidelity(images)
    assert _deviation(biased, expected) < ROUNDING
    assert _deviation(logits, expected) > 100 * ROUNDING


def test_gray_digits_are_repeated(ours):
    digits = torch.from_numpy(load_digits().images[:2] * 15.9).to(torch.uint8)[:, None]
    features, _ = ours(digits)
    assert _deviation(features, ours(digits.repeat(1, 3, 1, 1))[0]) < ROUNDING


def test_an_images_features_do_not_depend_on_how_many_there_are(ours, monkeypatch):
    monkeypatch.setattr(inception, "_CHUNK", 2)
    images = torch.cat([_photographs(32), _photographs(40)[:, :, :32, :32]])[:3]
    features, logits = ours(images)
    assert features.shape == (3, 2048)
    alone, alone_logits = ours(images[2:])
    assert _deviation(features[2:], alone) < ROUNDING
    assert _deviation(logits[2:], alone_logits) < ROUNDING


# -- who it is --------------------------------------------------------------------------------


@pytest.mark.usefixtures("_like")
def test_the_identity_has_the_files_weights_and_all_preprocessing(ours, state):
    identity = ours.identity()
    assert json.loads(json.dumps(identity)) == identity
    weights = {k: v for k, v in state.items() if v.is_floating_point()}
    assert identity == {
        "name": "inception-2015",
        "weights": hash_of(weights),
        "num_features": 2048,
        "size": 299,
        "resize": "tf1-bilinear",
        "normalisation": "(x-128)/128",
        "logits_bias": False,
    }
    identities = {json.dumps(_set(ours, preset).identity()) for preset in PRESETS.values()}
    assert len(identities) == len(PRESETS) - 1  # StyleGAN2-ADA's pixels are torch-fidelity's


def test_it_is_frozen(ours):
    assert not any(p.requires_grad for p in ours.parameters())
    assert not any(layer.training for layer in ours.train().modules())
    assert ours.num_logits == 1008


def test_other_weights_are_not_genuine(ours):
    assert not ours.genuine


def test_it_can_be_described_and_built_again(path, monkeypatch):
    monkeypatch.setattr(inception, "_Inception", lambda _: nn.Identity())
    extractor = InceptionExtractor(path, "pil-bicubic", expected=None)
    again = build(describe(extractor))
    assert again.resize == "pil-bicubic"
    assert again.identity() == extractor.identity()


# -- weights: what can go wrong ---------------------------------------------------------------


def _small(path, changes=None):
    """Write weights of the right shapes, all zero, in a few kilobytes."""
    with torch.device("meta"):
        network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    shapes = {name: t.shape for name, t in network.state_dict().items()} | (changes or {})
    torch.save({n: torch.zeros(()).expand(s) for n, s in shapes.items() if s is not None}, path)
    return path


@pytest.fixture
def small(tmp_path):
    return _small(tmp_path / "small.pth")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty folder of torch.hub, and a network that must not be asked."""

    def refuse(*_, **__):
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "hub" / "checkpoints"


def test_another_hash_than_the_published_files_is_refused(small):
    start = hashlib.sha256(small.read_bytes()).hexdigest()[:8]
    message = f"small.pth has the layers .* begins with {start}, expected 6726825d.*expected=None"
    with pytest.raises(ValueError, match=message):
        InceptionExtractor(small)


def test_weights_with_the_published_hash_are_genuine(small, monkeypatch):
    start = hashlib.sha256(small.read_bytes()).hexdigest()[:8]
    assert not InceptionExtractor(small, expected=start).genuine
    monkeypatch.setattr(inception, "SHA256", start)
    assert InceptionExtractor(small, expected=start).genuine
    assert InceptionExtractor(small, expected=None).genuine


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pth; expected pt_inception-2015"):
        InceptionExtractor(tmp_path / "none.pth")


def test_a_file_of_pickled_objects_is_refused(tmp_path):
    torch.save({"weight": Path("x")}, tmp_path / "objects.pth")
    with pytest.raises(ValueError, match="No object in it was opened"):
        InceptionExtractor(tmp_path / "objects.pth")


def test_torchvisions_own_inception_is_told_apart(tmp_path):
    changes = {
        "fc.weight": (1000, 2048),
        "fc.bias": (1000,),
        "AuxLogits.conv0.conv.weight": (128, 768, 1, 1),
    }
    path = _small(tmp_path / "inception_v3_google.pth", changes)
    with pytest.raises(ValueError, match=r"torchvision's own Inception .*another network"):
        InceptionExtractor(path)


def test_another_network_is_told_by_its_layers(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(nn.Linear(2, 3).state_dict(), path)
    with pytest.raises(ValueError, match=r"another network than FID's Inception; expected pt_ince"):
        InceptionExtractor(path, expected=None)


def test_a_layer_of_another_shape_is_named(tmp_path):
    changes = {
        "Mixed_5b.branch1x1.conv.weight": (64, 192, 3, 3),
        "Mixed_7c.branch_pool.bn.bias": None,
    }
    path = _small(tmp_path / "changed.pth", changes)
    with pytest.raises(ValueError, match="another network") as error:
        InceptionExtractor(path)
    assert "missing: Mixed_7c.branch_pool.bn.bias" in str(error.value)
    assert "Mixed_5b.branch1x1.conv.weight (64, 192, 3, 3) for (64, 192, 1, 1)" in str(error.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"resize": "bilinear"}, "no resize 'bilinear'"),
        ({"normalisation": "imagenet"}, r"no normalisation 'imagenet'; choose one of \(x-128\)"),
    ],
)
def test_unknown_preprocessing_is_refused_before_anything_is_read(argument, message):
    with pytest.raises(ValueError, match=message):
        InceptionExtractor("nowhere.pth", **argument)


# -- weights: where they are ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "pt_inception-2015-12-05-6726825d.pth",
        "weights-inception-2015-12-05-6726825d.pth",
    ],
)
def test_weights_of_pytorch_fid_or_torch_fidelity_are_found_where_these_put_them(hub, small, name):
    hub.mkdir(parents=True)
    small.rename(hub / name)
    with pytest.raises(ValueError, match=f"{name} has the layers of FID's Inception"):
        InceptionExtractor()
    assert not InceptionExtractor(expected=None).genuine


def test_missing_weights_are_downloaded_and_checked(hub, small, monkeypatch):
    asked = []

    def download(url, target, hash_prefix=None, progress=True):
        asked.append((url, hash_prefix, progress))
        Path(target).write_bytes(small.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    InceptionExtractor(expected=None)
    InceptionExtractor(expected=None)
    (only,) = asked
    assert only == (inception.URL, "6726825d", True)
    assert (hub / "pt_inception-2015-12-05-6726825d.pth").is_file()


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError(OSError(-2, "Name or service not known")),
        RuntimeError('invalid hash value (expected "6726825d", got "0000")'),
    ],
)
def test_without_a_network_one_message_says_all_that_can_be_done(hub, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(FileNotFoundError) as raised:
        InceptionExtractor()
    said = str(raised.value)
    assert str(hub) in said
    assert str(error) in said
    assert "--evaluate.weights PATH" in said
    assert inception.URL in said
    assert "fd" in said.split()
    assert said.count("\n") == 2


def test_weights_without_counters_of_batches_load_too(tmp_path, state):
    counters = dict.fromkeys(n for n in state if n.endswith("num_batches_tracked"))
    assert counters
    assert InceptionExtractor(_small(tmp_path / "old.pth", counters), expected=None).name
