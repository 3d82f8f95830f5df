"""Classifiers as extractors: what they compute, what they say of themselves, their files."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from imgsynth import metrics
from imgsynth.data import Digits
from imgsynth.describe import Described
from imgsynth.metrics.classifier import ClassifierExtractor
from imgsynth.networks import SmallCNN

SHIPPED = Path(metrics.__file__).parent / "judges" / "digits.pt"


class Linear(Described, nn.Module):
    """The pixels as features."""

    image_shape, num_classes, num_features = (1, 2, 2), 3, 4

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Linear(4, 3)

    def features(self, images):
        return self.scale * images.flatten(1)


def _extractor(network=None, **options):
    torch.manual_seed(0)
    facts = {"accuracy": 0.75, "num_heldout": 8, "data": "Points", "fingerprint": "f", **options}
    return ClassifierExtractor(network if network is not None else Linear(2.0), **facts)


def test_features_and_logits_are_those_of_the_network_at_the_images_values():
    extractor = _extractor()
    images = torch.tensor([0, 51, 204, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    features, logits = extractor(images)
    torch.testing.assert_close(features, torch.tensor([[-2.0, -1.2, 1.2, 2.0]]))
    torch.testing.assert_close(logits, F.linear(features, *extractor.network.head.parameters()))
    assert (extractor.num_features, extractor.num_logits) == (4, 3)


def test_the_network_is_copied_and_evaluates():
    network = SmallCNN((1, 8, 8), 3, width=4)
    extractor = _extractor(network)
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    before = extractor(images)[1]
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    nn.init.zeros_(network.head.weight)
    network(torch.randn(8, 1, 8, 8))  # moves its statistics
    assert torch.equal(extractor(images)[1], before)
    assert not any(m.training for m in extractor.modules())
    assert not any(p.requires_grad for p in extractor.parameters())
    torch.testing.assert_close(extractor(images[:1])[1], before[:1])


def test_gray_images_serve_a_classifier_of_colours():
    extractor = _extractor(SmallCNN((3, 8, 8), 3, width=4))
    gray = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(extractor(gray)[0], extractor(gray.expand(-1, 3, -1, -1))[0])


def test_the_identity_names_the_weights_the_network_and_the_accuracy():
    identity = _extractor().identity()
    assert {k: identity[k] for k in ("name", "data", "accuracy", "num_features", "size")} == {
        "name": "classifier",
        "data": "Points",
        "accuracy": 0.75,
        "num_features": 4,
        "size": [2, 2],
    }
    assert identity["network"].endswith("Linear")
    other = _extractor()
    assert other.identity() == identity
    with torch.no_grad():
        other.network.head.bias[0] += 1e-6
    other = ClassifierExtractor(other.network, accuracy=0.75, num_heldout=8, data="Points")
    assert other.identity()["weights"] != identity["weights"]


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="trained on images of 2x2 pixels, got 4x2"):
        _extractor()(torch.zeros(1, 1, 4, 2, dtype=torch.uint8))


def test_a_network_without_features_is_refused_with_what_it_lacks():
    with pytest.raises(ValueError, match="Conv2d lacks features, head, image_shape, num_classes"):
        _extractor(nn.Conv2d(1, 1, 1))


# -- files ----------------------------------------------------------------------------------------


def test_a_saved_classifier_comes_back_whole_and_leaves_random_numbers_alone(tmp_path):
    extractor = _extractor(SmallCNN((1, 8, 8), 3, width=4), training="10 images")
    extractor.save(tmp_path / "new" / "judge.pt")
    before = torch.random.get_rng_state()
    loaded = ClassifierExtractor.load(tmp_path / "new" / "judge.pt")
    assert torch.equal(before, torch.random.get_rng_state())
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(loaded(images)[0], extractor(images)[0])
    assert loaded.identity() == extractor.identity()
    facts = ("accuracy", "num_heldout", "data", "fingerprint", "training_in_words")
    assert [getattr(loaded, f) for f in facts] == [0.75, 8, "Points", "f", "10 images"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["judge.pt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    extractor = _extractor(SmallCNN((1, 8, 8), 3, width=4))
    path = tmp_path / "judge.pt"
    extractor.save(path)
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        extractor.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_class_of_another_package_is_built_only_if_it_is_trusted(tmp_path, monkeypatch):
    path = tmp_path / "judge.pt"
    _extractor().save(path)
    package = Linear.__module__.partition(".")[0]
    with pytest.raises(ValueError, match="which is not part of imgsynth"):
        ClassifierExtractor.load(path)
    assert ClassifierExtractor.load(path, trusted=(package,)).network.scale == 2.0


def test_a_network_that_does_not_record_how_it_was_built_cannot_be_saved(tmp_path):
    network = nn.Module()
    network.features, network.head = nn.Flatten(), nn.Linear(4, 3)
    network.image_shape, network.num_classes, network.num_features = (1, 2, 2), 3, 4
    with pytest.raises(ValueError, match="Module does not record how it was built"):
        _extractor(network).save(tmp_path / "judge.pt")
    assert not (tmp_path / "judge.pt").exists()


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_files_of_another_kind_are_refused_and_nothing_of_them_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "judge.pt"
    with pytest.raises(FileNotFoundError, match="There is no classifier at"):
        ClassifierExtractor.load(path)
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ValueError, match=r"holds pickled Python objects|no classifier"):
        ClassifierExtractor.load(path)
    torch.save({"format": Harmful()}, path)
    with pytest.raises(ValueError, match="holds pickled Python objects"):
        ClassifierExtractor.load(path)
    assert not Path("harm").exists()
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="holds no classifier of this version"):
        ClassifierExtractor.load(path)
    path.write_bytes(SHIPPED.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="truncated or no classifier"):
        ClassifierExtractor.load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"accuracy": "high"}, "'accuracy' is missing or wrong"),
        ({"weights": {}}, "do not fit its network"),
        ({"network": {"class_path": "imgsynth.networks.MLPGenerator"}}, "needs the size"),
        ({"network": {"class_path": "os.system", "init_args": {}}}, "not part of imgsynth"),
    ],
)
def test_a_file_with_other_contents_is_refused(tmp_path, change, says):
    content = torch.load(SHIPPED, weights_only=True)
    torch.save(content | change, tmp_path / "judge.pt")
    with pytest.raises(ValueError, match=says):
        ClassifierExtractor.load(tmp_path / "judge.pt")


# -- what ships -----------------------------------------------------------------------------------


def test_the_shipped_classifier_reads_the_held_out_digits():
    shipped, data = ClassifierExtractor.load(SHIPPED), Digits()
    images, labels = next(data.reference("test", 500))
    logits = shipped(images)[1]
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    assert accuracy == shipped.accuracy >= 0.985
    assert shipped.num_heldout == len(labels) == 500
    assert shipped.fingerprint == data.fingerprint_of("train")
    assert shipped.num_features <= 64
    assert SHIPPED.stat().st_size < 150_000


def test_the_features_of_the_shipped_classifier_span_all_their_dimensions():
    shipped = ClassifierExtractor.load(SHIPPED)
    features = torch.cat([shipped(images)[0] for images, _ in Digits().reference("train")])
    covariance = torch.cov(features.T.double())
    torch.linalg.cholesky(covariance)  # what the Frechet distance is fastest with
    assert torch.linalg.cond(covariance) < 1e6
