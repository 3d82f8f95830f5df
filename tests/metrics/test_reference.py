import shutil
import threading

import numpy as np
import pytest
import torch
from torch import nn

from imgsynth.data import Arrays
from imgsynth.metrics import reference as module
from imgsynth.metrics.extractor import ModuleExtractor
from imgsynth.metrics.reference import FeatureSet, halves, key_of, reference, to_eight_bits


def make_data(num=200, seed=0, **kwargs) -> Arrays:
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num, 8, 8), generator=random).to(torch.uint8)
    labels = torch.arange(num) % 2
    return Arrays(pixels, labels, test_fraction=0.1, **kwargs)


def make_extractor(size=4) -> ModuleExtractor:
    layers = nn.Sequential(nn.AvgPool2d(size), nn.Flatten())
    return ModuleExtractor(layers, num_features=(8 // size) ** 2, channels=1)


class Counting(ModuleExtractor):
    seen = 0

    def probe(self, shape):
        return "not counted"

    def extract(self, images):
        Counting.seen += len(images)
        return super().extract(images)


@pytest.fixture
def counting():
    Counting.seen = 0
    return Counting(nn.Sequential(nn.AvgPool2d(4), nn.Flatten()), num_features=4, channels=1)


def test_what_is_read_equals_what_numpy_makes_of_the_images(tmp_path):
    data = make_data()
    found = reference(data, "train", make_extractor(), tmp_path)
    pixels = torch.cat([images for images, _ in data.reference("train")]).numpy() / 127.5 - 1
    pooled = pixels.reshape(-1, 2, 4, 2, 4).mean((2, 4)).reshape(-1, 4)
    np.testing.assert_allclose(found.features, pooled, atol=1e-6)
    np.testing.assert_allclose(found.gaussian.covariance, np.cov(pooled.T), atol=1e-6)
    assert torch.equal(found.labels, torch.cat([labels for _, labels in data.reference("train")]))
    factor = found.factor
    torch.testing.assert_close(factor @ factor.T, found.gaussian.covariance)


def test_images_are_looked_at_once(tmp_path, counting):
    data = make_data()
    first = reference(data, "train", counting, tmp_path)
    seen = Counting.seen
    assert seen == data.num_images("train")
    second = reference(data, "train", counting, tmp_path)
    assert Counting.seen == seen
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.factor, second.factor)
    assert torch.equal(first.radii(3), second.radii(3))


def test_of_several_at_once_one_looks_and_the_others_wait(tmp_path, counting):
    data = make_data()
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(reference(data, "train", counting, tmp_path).features)
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counting.seen == data.num_images("train")
    assert len(found) == 4
    assert all(torch.equal(found[0], other) for other in found)


def test_the_key_follows_images_labels_number_extractor_and_split():
    data = make_data()
    keys = [
        key_of(data, "train", make_extractor()),
        key_of(data, "test", make_extractor()),
        key_of(data, "train", make_extractor(2)),
        key_of(make_data(seed=1), "train", make_extractor()),
        key_of(make_data(num=190), "train", make_extractor()),
        key_of(data.limit(50), "train", make_extractor()),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(make_data(), "train", make_extractor()) == keys[0]


def test_a_folder_that_cannot_be_written_costs_a_warning_only(tmp_path, counting, monkeypatch):
    data = make_data()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_save", full)
        with pytest.warns(UserWarning, match=r"could not be kept in .* \(No space left"):
            found = reference(data, "train", counting, tmp_path)
    assert Counting.seen == data.num_images("train")
    assert found.gaussian.num == data.num_images("train")
    assert torch.equal(reference(data, "train", counting, tmp_path).factor, found.factor)
    assert Counting.seen == 2 * data.num_images("train")


def test_what_a_killed_process_left_is_cleared_away(tmp_path, counting):
    data = make_data()
    key = key_of(data, "train", counting)
    (tmp_path / "references" / f"{key}.7.part").mkdir(parents=True)
    (tmp_path / "references" / key).mkdir()
    (tmp_path / "references" / key / "factor.npy").write_bytes(b"")
    reference(data, "train", counting, tmp_path)
    reference(data, "train", counting, tmp_path)
    assert Counting.seen == data.num_images("train")
    assert not list(tmp_path.glob("references/*.part"))


def test_a_missing_file_is_made_again(tmp_path, counting):
    whole = reference(make_data(), "train", counting, tmp_path)
    next(tmp_path.glob("references/*/labels.npy")).unlink()
    assert torch.equal(reference(make_data(), "train", counting, tmp_path).labels, whole.labels)
    next(tmp_path.glob("references/*/about.json")).write_text("[]")
    assert torch.equal(reference(make_data(), "train", counting, tmp_path).labels, whole.labels)


@pytest.mark.parametrize("name", ["features", "mean", "covariance", "labels", "about", "factor"])
def test_what_is_damaged_is_computed_again(tmp_path, counting, name):
    data = make_data()
    whole = reference(data, "train", counting, tmp_path)
    factor = whole.factor
    suffix = "json" if name == "about" else "npy"
    (path,) = tmp_path.glob(f"references/*/{name}.{suffix}")
    path.write_bytes(path.read_bytes()[:-9])
    found = reference(data, "train", counting, tmp_path)
    assert torch.equal(found.features, whole.features)
    assert torch.equal(found.labels, whole.labels)
    assert torch.equal(found.factor, factor)


def test_a_folder_that_goes_while_it_is_used_does_no_harm(tmp_path, counting):
    found = reference(make_data(), "train", counting, tmp_path)
    shutil.rmtree(tmp_path / "references")
    assert found.factor.shape == (4, 4)
    assert len(found.radii(3)) == len(found)


class Times(nn.Module):
    """What no weight tells: a factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, images):
        return nn.functional.avg_pool2d(images, 4).flatten(1) * self.factor


def test_modules_that_differ_in_an_attribute_only_are_told_apart():
    one, other = (ModuleExtractor(Times(k), num_features=4, channels=1) for k in (1, 3))
    assert one.identity() != other.identity()
    assert key_of(make_data(), "train", one) != key_of(make_data(), "train", other)


def test_weights_that_change_are_told_apart():
    extractor = ModuleExtractor(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), 8, channels=1)
    before, key = extractor.identity(), key_of(make_data(), "train", extractor)
    nn.init.normal_(extractor.module[1].weight)
    assert extractor.identity() != before
    assert key_of(make_data(), "train", extractor) != key


def test_of_many_images_some_features_are_kept_and_all_count_in_the_covariance(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "MOST_FEATURES", 50)
    data = make_data()
    found = reference(data, "train", make_extractor(), tmp_path)
    monkeypatch.undo()
    whole = reference(data, "train", make_extractor(), tmp_path)
    assert found.features.shape == (50, 4)
    assert len(found.labels) == 50
    assert found.gaussian.num == len(whole.features) == data.num_images("train")
    assert torch.equal(found.gaussian.covariance, whole.gaussian.covariance)
    rows = {tuple(row) for row in whole.features.tolist()}
    assert {tuple(row) for row in found.features.tolist()} <= rows


def test_sixteen_bits_are_rounded_to_eight():
    levels = torch.tensor([0, 128, 129, 257, 65535]).to(torch.uint16)
    assert to_eight_bits(levels).tolist() == [0, 0, 1, 1, 255]
    assert to_eight_bits(torch.tensor([7], dtype=torch.uint8)).tolist() == [7]


def test_halves_share_no_image():
    one, other = halves(FeatureSet(torch.arange(11.0)[:, None], labels=torch.arange(11)))
    assert sorted([*one.labels.tolist(), *other.labels.tolist()]) == list(range(11))
    assert torch.equal(one.features[:, 0], one.labels.float())
