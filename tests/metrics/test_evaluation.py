import random

import numpy as np
import pytest
import torch
from torch import nn

from imgsynth.data import Arrays
from imgsynth.images import to_uint8
from imgsynth.methods import HingeGAN
from imgsynth.metrics.evaluation import Evaluation
from imgsynth.metrics.extractor import Extractor
from imgsynth.networks import MLPDiscriminator, MLPGenerator

SHAPE = (1, 8, 8)


class Pooled(Extractor):
    """Four means as features and two logits, of 8x8 gray images."""

    name, num_features, num_logits, channels = "pooled", 4, 2, 1

    def extract(self, images):
        pixels = images.float() / 255
        return nn.functional.avg_pool2d(pixels, 4).flatten(1), pixels.flatten(1)[:, :2]


def make_data(num=300, test=100, classes=2, **kwargs) -> Arrays:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num + test, 8, 8), generator=generator).to(torch.uint8)
    labels = (torch.arange(num + test) % 3 > 0).long() if classes else None
    test_labels = None if labels is None else labels[num:]
    return Arrays(
        pixels[:num],
        None if labels is None else labels[:num],
        test_images=pixels[num:] if test else None,
        test_labels=test_labels if test else None,
        **kwargs,
    )


def make_gan(num_classes=2) -> HingeGAN:
    torch.manual_seed(0)
    generator = MLPGenerator(SHAPE, num_classes, latent_dim=4, width=4, depth=1)
    gan = HingeGAN(generator, MLPDiscriminator(SHAPE, num_classes, width=4, depth=1))
    gan.configure_model()
    with torch.no_grad():
        for parameter in gan.generator.parameters():  # the averages stay what they are
            parameter.add_(0.1)
    return gan


@pytest.fixture
def gan():
    return make_gan()


def evaluation(tmp_path, metrics, data=None, **kwargs):
    kwargs = {"num": 200, "num_protocol": 200, "conditional": True, **kwargs}
    return Evaluation(data or make_data(), Pooled(), metrics, folder=tmp_path, **kwargs)


def formula(one, other):
    """The Frechet distance as pytorch-fid computes it."""
    from pytorch_fid.fid_score import calculate_frechet_distance

    sides = [(np.mean(x, 0), np.cov(x, rowvar=False)) for x in (one, other)]
    return calculate_frechet_distance(*sides[0], *sides[1], eps=0)


def pooled(images):
    return Pooled()(images)[0].double().numpy()


def test_a_score_is_that_of_the_samples_of_its_seed(tmp_path, gan):
    made = evaluation(tmp_path, ["fd"])
    result = made.score(gan, seeds=(0, 3))
    real = pooled(torch.cat([images for images, _ in make_data().reference("train")]))
    for seed, value in zip((0, 3), result.values["fd"], strict=True):
        samples = to_uint8(gan.sample(200, made.labels_for(seed), seed=seed))
        assert value == pytest.approx(formula(pooled(samples), real), rel=1e-9)
    assert result.means()["fd"] == pytest.approx(sum(result.values["fd"]) / 2)
    assert result.range("fd") == (min(result.values["fd"]), max(result.values["fd"]))


def test_repeating_gives_the_same_digits_and_moves_no_random_state(tmp_path, gan):
    metrics = ["fd", "cls_score", "precision", "recall", "density", "coverage", "swd"]
    made = evaluation(tmp_path, metrics)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = made.score(gan).values
    second = evaluation(tmp_path, metrics).score(gan).values
    assert first == second
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()
    _ = made.floor
    assert torch.equal(before[0], torch.get_rng_state())


def test_labels_have_the_shares_of_the_real_images(tmp_path):
    for num, counts in ((600, [200, 400]), (660, [220, 440]), (250, [83, 167]), (31, [10, 21])):
        made = evaluation(tmp_path, ["fd"], num=num)
        labels, others = made.labels_for(0), made.labels_for(1)
        assert torch.bincount(labels).tolist() == torch.bincount(others).tolist() == counts
        assert torch.equal(labels, made.labels_for(0))
        assert not torch.equal(labels, others)


def test_the_averaged_and_the_live_weights_have_two_scores_and_two_protocols(tmp_path, gan):
    made = evaluation(tmp_path, ["fd"])
    averaged, live = made.score(gan), made.score(gan, ema=False)
    assert averaged.values != live.values
    assert averaged.protocols["fd"].differences(live.protocols["fd"]) == ["weights: averaged, live"]


def test_fewer_images_than_the_protocol_asks_for_give_a_score_another_name(tmp_path, gan):
    result = evaluation(tmp_path, ["fd", "cls_score"], num_protocol=2_000).score(gan)
    assert list(result.protocols) == ["fd200", "cls_score200"]
    assert list(result.values) == ["fd200", "cls_score200", "cls_score200_std"]


def test_the_floor_is_the_score_of_held_out_images(tmp_path):
    made = evaluation(tmp_path, ["fd", "precision"])
    train, test = (
        pooled(torch.cat([images for images, _ in make_data().reference(split)]))
        for split in ("train", "test")
    )
    assert made.floor["fd"] == pytest.approx(formula(test, train), rel=1e-9)
    assert "100 real images of test" in made.floor_text()
    kept = evaluation(tmp_path, ["fd", "precision"])
    assert kept.floor == made.floor
    assert made.floor_of("fd") == {"score": made.floor["fd"], "num": 100, "split": "test"}
    fewer = evaluation(tmp_path, ["fd", "precision"], num=50)
    assert fewer.num_held_out == 50
    assert fewer.floor["fd"] != made.floor["fd"]


def test_without_held_out_images_the_floor_compares_halves(tmp_path):
    made = evaluation(tmp_path, ["fd"], make_data(test=0))
    assert made.floor["fd"] > 0
    assert "half of the real images (150) against the other half" in made.floor_text()


def test_recall_alone_is_not_watched(tmp_path, gan):
    made = evaluation(tmp_path, ["recall"])
    result = made.score(gan, matched=True)
    assert result.watched is None
    assert made.alarm(result) is None
    assert result.matched.keys() == {"recall"}


@pytest.mark.parametrize("test", [0, 2, 3])
def test_few_held_out_images_raise_no_alarm(tmp_path, gan, test):
    made = evaluation(tmp_path, ["precision", "recall"], make_data(num=40, test=test), num=40)
    made.prepare()
    assert made.alarm(made.score(gan, matched=True)) is None


def test_images_that_are_all_alike_raise_the_alarm(tmp_path, gan):
    made = evaluation(tmp_path, ["precision", "recall"])
    one = next(make_data().reference("train"))[0][:1].float() / 127.5 - 1
    result = made.score(returning(gan, lambda n: one.expand(n, -1, -1, -1)))
    assert result.values["precision"] == [1]
    assert "lack variety" in made.alarm(result)


def test_classes_are_compared_each_for_itself(tmp_path, gan):
    made = evaluation(tmp_path, ["fd_class"])
    found = {name: values[0] for name, values in made.score(gan).values.items()}
    labels = made.labels_for(0)
    samples = to_uint8(gan.sample(200, labels, seed=0))
    images, truth = (
        torch.cat(parts) for parts in zip(*make_data().reference("train"), strict=True)
    )
    for label in (0, 1):
        by_hand = formula(pooled(samples[labels == label]), pooled(images[truth == label]))
        assert found[f"fd_class/{label}"] == pytest.approx(by_hand, rel=1e-9)
    assert found["fd_class"] == pytest.approx(
        (found["fd_class/0"] + found["fd_class/1"]) / 2, rel=1e-12
    )


@pytest.mark.parametrize(
    ("metrics", "kwargs", "said"),
    [
        (["fid"], {}, "ask for fd"),
        (["fid", "fd"], {}, "one evaluation has one space"),
        (["fdd"], {}, "no score 'fdd'"),
        ([], {}, "one or more"),
        (["fd", "fd"], {}, "each once"),
        (["fd"], {"num": 4}, "at least 5 generated images .more than its 4 features., got 4"),
        (["kd"], {}, "at least 1,000 generated images, got 200"),
        (["kd"], {"num": 2000}, "at least 1,000 real images, got 300"),
        (["fd_class"], {"conditional": False}, "needs labels, and the generator takes none"),
        (["fd_class"], {"num": 10}, "more than 4 generated images of each class .*got . of"),
        (["fd"], {"data": make_data(classes=0)}, "takes labels, but the data has none"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_training(tmp_path, metrics, kwargs, said):
    with pytest.raises(ValueError, match=said):
        evaluation(tmp_path, metrics, **kwargs)


def returning(gan, images):
    gan.generate = lambda latents, labels=None: images(len(latents))
    return gan


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (lambda n: torch.full((n, *SHAPE), float("nan")), "NaN"),
        (lambda n: torch.zeros(n, 1, 16, 16), r"shape \(1, 16, 16\), the real ones \(1, 8, 8\)"),
        (lambda n: torch.full((n, *SHAPE), 200.0), r"expected \[-1, 1\]"),
    ],
)
def test_images_that_are_none_are_refused(tmp_path, gan, images, said):
    made = evaluation(tmp_path, ["swd"])
    with pytest.raises(ValueError, match=said):
        made.score(returning(gan, images))


def test_values_a_little_outside_are_clamped(tmp_path, gan):
    made = evaluation(tmp_path, ["swd"])
    inside = made.score(returning(gan, lambda n: -torch.ones(n, *SHAPE))).values
    outside = made.score(returning(gan, lambda n: torch.full((n, *SHAPE), -1.3))).values
    assert inside == outside


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (lambda n: torch.rand(n, *SHAPE), "No generated image has a value below 0"),
        (lambda n: 9 * torch.randn(n, *SHAPE), "of the generated values lie beyond 1.5"),
    ],
)
def test_images_of_another_range_are_told(tmp_path, gan, images, said):
    made = evaluation(tmp_path, ["swd"])
    with pytest.warns(UserWarning, match=said):
        made.score(returning(gan, images))


def test_a_generator_that_makes_too_few_images_is_refused(tmp_path, gan):
    made = evaluation(tmp_path, ["swd"])
    with pytest.raises(ValueError, match="was given 64 latents and returned 32 images"):
        made.score(returning(gan, lambda n: torch.zeros(n // 2, *SHAPE)))


@pytest.mark.gpu
def test_scores_on_a_gpu_are_nearly_those_on_a_processor(tmp_path, gan):
    metrics = ["fd", "cls_score", "precision", "recall", "swd"]
    alone = evaluation(tmp_path / "cpu", metrics).score(gan).means()
    found = evaluation(tmp_path / "gpu", metrics).score(gan.cuda()).means()
    assert found == pytest.approx(alone, rel=1e-3, abs=5e-3)
