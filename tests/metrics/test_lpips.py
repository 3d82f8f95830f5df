import hashlib
import math
import pickle
from copy import deepcopy
from pathlib import Path

import lpips
import pytest
import torch
import torchvision
from sklearn.datasets import load_sample_image
from torch import nn

import imgsynth.metrics.lpips as ours
from imgsynth.metrics.lpips import LPIPS

NETS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


@pytest.fixture(scope="module")
def trunks(tmp_path_factory):
    """Per net: torchvision's network with random features, and a file of it."""
    folder, made = tmp_path_factory.mktemp("trunks"), {}
    generator = torch.Generator().manual_seed(0)
    for net, name in NETS.items():
        with torch.device("meta"):  # its classifier has 100 million weights
            model = getattr(torchvision.models, name)()
        model.features.to_empty(device="cpu")
        for weight in model.features.parameters():
            spread = math.sqrt(2 / weight[0].numel()) if weight.ndim > 1 else 0.1
            weight.data.normal_(0, spread, generator=generator)
        state = {f"features.{k}": v for k, v in model.features.state_dict().items()}
        path = folder / f"{name}.pth"
        torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, path)
        made[net] = (model, path)
    return made


@pytest.fixture
def squeeze(trunks):
    return trunks["squeeze"][1]


def pairs(num=3, side=64):
    """Crops of a photograph, and what is left of them after noise that grows."""
    generator = torch.Generator().manual_seed(0)
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    target = torch.stack([photo[:, 60 * i : 60 * i + side, 200 : 200 + side] for i in range(num)])
    noise = torch.randn(target.shape, generator=generator)
    noise *= 10 * torch.arange(1, num + 1).view(-1, 1, 1, 1)
    return (target + noise).round().clamp(0, 255).byte(), target


def value_of(metric, restored, target):
    metric.update(restored, target)
    return metric.compute().item()


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_lpips_is_that_of_its_authors(net, trunks, monkeypatch):
    model, path = trunks[net]
    with monkeypatch.context() as patch:  # their program would download the trunk
        patch.setattr(lpips.pretrained_networks.tv, NETS[net], lambda pretrained: model)
        theirs = lpips.LPIPS(net=net, verbose=False)
    restored, target = pairs()
    with torch.no_grad():
        wanted = theirs(restored / 127.5 - 1, target / 127.5 - 1).flatten()
    metric = LPIPS(net, weights=path)
    mean = value_of(metric, restored, target)
    assert metric.per_image.tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
    assert mean == pytest.approx(wanted.mean().item(), rel=1e-5)
    assert wanted.min() > 1e-3
    assert metric.compute().dtype == torch.float64


@pytest.mark.parametrize("net", NETS)
def test_the_layers_on_top_are_those_of_the_authors(net, trunks):
    file = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    own = LPIPS(net, weights=trunks[net][1])._network.state_dict()
    assert len(theirs) == (7 if net == "squeeze" else 5)
    for name, weight in theirs.items():
        assert torch.equal(own[name], weight)


def test_equal_images_have_no_distance(squeeze):
    _, target = pairs()
    assert value_of(LPIPS("squeeze", weights=squeeze), target, target) == 0


def test_a_gray_image_is_an_rgb_image_of_three_equal_channels(squeeze):
    gray = [images[:, :1] for images in pairs()]
    rgb = [images.repeat(1, 3, 1, 1) for images in gray]
    metrics = [LPIPS("squeeze", weights=squeeze) for _ in range(2)]
    assert value_of(metrics[0], *gray) == value_of(metrics[1], *rgb) > 0


def test_batches_do_not_matter(squeeze):
    restored, target = pairs()
    whole, parts = (LPIPS("squeeze", weights=squeeze) for _ in range(2))
    whole.update(restored, target)
    for start, end in ((0, 2), (2, 3)):
        parts.update(restored[start:end], target[start:end])
    torch.testing.assert_close(parts.per_image, whole.per_image, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts.compute(), whole.compute(), rtol=1e-5, atol=0)


def test_half_precision_of_a_run_does_not_change_the_value(squeeze):
    plain, within = (LPIPS("squeeze", weights=squeeze) for _ in range(2))
    wanted = value_of(plain, *pairs())
    with torch.autocast("cpu", torch.bfloat16):
        assert value_of(within.bfloat16(), *pairs()) == wanted


# -- a guest in a run ------------------------------------------------------------------------------


def test_the_network_is_in_no_checkpoint_and_learns_nothing(squeeze):
    metric = LPIPS("squeeze", weights=squeeze)
    owner = nn.Module()
    owner.metric = metric
    assert not owner.state_dict()
    assert not list(owner.parameters())
    assert not any(p.requires_grad for p in metric._network.parameters())
    owner.train()
    first = metric.score(*pairs())
    assert torch.equal(metric.score(*pairs()), first)  # no dropout
    assert not first.requires_grad


def test_making_the_metric_draws_no_random_numbers(squeeze):
    before = torch.get_rng_state()
    LPIPS("squeeze", weights=squeeze)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_metric_can_be_copied_and_pickled(squeeze):
    metric = LPIPS("squeeze", weights=squeeze)
    metric.update(*pairs())
    for copy in (deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert copy.compute() == metric.compute()
        assert torch.equal(copy.score(*pairs()), metric.per_image)


# -- protocol --------------------------------------------------------------------------------------


def test_the_protocol_tells_weights_apart(trunks, tmp_path):
    _, path = trunks["squeeze"]
    protocol = LPIPS("squeeze", weights=path).protocol
    assert protocol == {
        "metric": "lpips",
        "net": "squeeze",
        "version": "0.1",
        "weights": protocol["weights"],
        "published": False,
        "mean_over": "images",
    }
    state = torch.load(path, weights_only=True)
    same, other = tmp_path / "same.pth", tmp_path / "other.pth"
    # another file with the same features
    torch.save({k: v for k, v in state.items() if k.startswith("features.")}, same)
    assert LPIPS("squeeze", weights=same).protocol == protocol
    state["features.12.squeeze.bias"][3] += 1e-6
    torch.save(state, other)
    assert LPIPS("squeeze", weights=other).protocol["weights"] != protocol["weights"]


def test_the_published_file_is_known_by_its_hash(squeeze, monkeypatch):
    start = hashlib.sha256(squeeze.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(
        ours._TRUNKS, "squeeze", ("squeezenet1_1", f"squeezenet1_1-{start}.pth", 17)
    )
    assert LPIPS("squeeze", weights=squeeze).protocol["published"]


# -- errors ----------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.pth.*nothing is downloaded"):
        LPIPS(weights=tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("given", "net", "message"),
    [
        ("squeeze", "alex", r"no alexnet .*features\.0\.weight is of shape \(64, 3, 3, 3\), exp"),
        ("alex", "vgg", r"no vgg16 .*\(64, 3, 11, 11\), expected \(64, 3, 3, 3\)\. .*vgg16-397923"),
        ("vgg", "squeeze", r"no squeezenet1_1 .*features\.3\.squeeze\.weight is missing, expected"),
    ],
)
def test_the_file_of_another_network_is_refused(given, net, message, trunks):
    with pytest.raises(ValueError, match=message):
        LPIPS(net, weights=trunks[given][1])


def test_a_file_of_pickled_objects_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was run",))

    for name, content in (("module", nn.Linear(1, 1)), ("evil", Evil())):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} holds something other.*No object in it was"):
            LPIPS(weights=tmp_path / name)
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04half"])
def test_a_file_without_weights_is_refused(tmp_path, content):
    path = tmp_path / "alexnet.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"alexnet\.pth holds something other than weights"):
        LPIPS(weights=path)


def test_a_truncated_file_is_refused(tmp_path, squeeze):
    path = tmp_path / "half.pth"
    path.write_bytes(squeeze.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"half\.pth holds something other.*or is damaged"):
        LPIPS("squeeze", weights=path)


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds no mapping of names to tensors"):
        LPIPS(weights=tmp_path / "list.pth")


def test_an_unknown_net_is_refused(squeeze):
    with pytest.raises(ValueError, match=r"one of alex, vgg, squeeze, got 'vgg16'"):
        LPIPS("vgg16", weights=squeeze)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, t: (r / 127.5 - 1, t), r"LPIPS: restored is torch.float32.*to_uint8"),
        (lambda r, t: (r, t.to(torch.uint16)), r"target is torch.uint16, but must be torch.uint8"),
        (lambda r, t: (r[0], t[0]), r"as \(N, C, H, W\)"),
        (lambda r, t: (r[:1], t), r"one shape"),
        (lambda r, t: (r[:, :2], t[:, :2]), r"RGB or gray images, got 2 channels"),
    ],
)
def test_images_that_do_not_fit_are_refused(squeeze, change, message):
    metric = LPIPS("squeeze", weights=squeeze)
    with pytest.raises(ValueError, match=message):
        metric.update(*change(*pairs()))


@pytest.mark.parametrize("net", NETS)
def test_the_smallest_image_is_taken_and_a_smaller_one_refused(net, trunks):
    metric = LPIPS(net, weights=trunks[net][1])
    side = metric.smallest
    metric.update(*pairs(1, side))
    with pytest.raises(ValueError, match=rf"at least {side} x {side} pixels, got {side - 1} x"):
        metric.update(*pairs(1, side - 1))
    with pytest.raises(RuntimeError, match="too small"):  # so no smaller one can be taken
        metric.score(*pairs(1, side - 1))
