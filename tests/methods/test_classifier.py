"""Classification: cross-entropy by hand, schedules, what is held out, pictures, errors."""

import math
import warnings

import pytest
import torch
from classifying import linear, trainer, validated
from ranks import together
from torch import nn
from torch.utils.data import DataLoader

from imgsynth.augment import RandomTranslation
from imgsynth.callbacks import Checkpoint
from imgsynth.data import Digits
from imgsynth.data.base import ImageDataModule
from imgsynth.ema import averaging_weight
from imgsynth.images import from_uint8
from imgsynth.loggers.record import Record, read_rows
from imgsynth.methods import Classifier
from imgsynth.networks import SmallCNN
from imgsynth.optim import SGD, LinearDecay
from imgsynth.testing import check_method


class Batches(ImageDataModule):
    """Given images and labels, as training and as test data."""

    splits = ("train",)

    def __init__(self, images, labels, **kwargs):
        super().__init__(**kwargs)
        self.images, self.labels = images, labels

    def load_split(self, split):
        return self.images, self.labels


def _batches(num, size=3, classes=10):
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "image": torch.rand(size, 1, 8, 8, generator=generator) * 2 - 1,
            "label": torch.randint(0, classes, (size,), generator=generator),
        }
        for _ in range(num)
    ]


def _log_softmax(logits):
    return logits - logits.exp().sum(1, keepdim=True).log()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_cross_entropy_with_labels_spread_over_all_classes(smoothing):
    method = linear(label_smoothing=smoothing)
    (batch,) = _batches(1)
    with torch.no_grad():
        found = method.training_step(batch, 0)
        log_p = _log_softmax(method.network(batch["image"]))
    own = log_p[torch.arange(3), batch["label"]]
    expected = -((1 - smoothing) * own + smoothing * log_p.mean(1)).mean()
    torch.testing.assert_close(found, expected)
    means = method.meter.means()
    assert means["train/cross_entropy"] == pytest.approx(expected.item())
    right = (log_p.argmax(1) == batch["label"]).float().mean().item()
    assert means["train/accuracy"] == pytest.approx(right)


def test_an_untrained_guess_costs_the_logarithm_of_the_number_of_classes():
    method = linear()
    nn.init.zeros_(method.network[1].weight)
    nn.init.zeros_(method.network[1].bias)
    assert method.training_step(_batches(1)[0], 0).item() == pytest.approx(math.log(10))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_equals_a_loop_by_hand(accumulate):
    batches = _batches(8)
    options = {"schedule": LinearDecay(warmup=6, start=6), "optimizer": SGD(lr=0.3, momentum=0.9)}
    method = linear(**options, ema_half_life=10, ema_ramp_up=None)
    run = trainer(8 // accumulate, accumulate_grad_batches=accumulate)
    run.fit(method, DataLoader(batches, batch_size=None))

    network = linear().network
    average = {k: v.clone() for k, v in network.state_dict().items()}
    sgd = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9)
    for update in range(8 // accumulate):
        images = 3 * accumulate * update
        decay = 1 - max(0, images - 6) / (24 - 6)
        sgd.param_groups[0]["lr"] = 0.3 * min(1, images / 6) * decay
        sgd.zero_grad()
        for batch in batches[update * accumulate : (update + 1) * accumulate]:
            log_p = _log_softmax(network(batch["image"]))
            (-log_p[torch.arange(3), batch["label"]].mean() / accumulate).backward()
        sgd.step()
        weight = averaging_weight(3 * accumulate, 0, 10, None)
        for name, value in network.state_dict().items():
            average[name] += weight * (value - average[name])
    assert method.updates == run.global_step == 8 // accumulate
    assert method.images_seen == method.total_images == 24
    for name, value in network.state_dict().items():
        torch.testing.assert_close(method.network.state_dict()[name], value)
        torch.testing.assert_close(method.ema["network"].state_dict()[name], average[name])


def test_a_classifier_keeps_the_contract(digits):
    def make():
        network = SmallCNN((1, 8, 8), 10, width=4, num_features=8)
        return Classifier(network, augment=RandomTranslation(1), label_smoothing=0.1)

    check_method(make, digits)


# -- held-out images ------------------------------------------------------------------------------


def test_the_validation_is_that_of_the_averaged_weights_over_all_images(tmp_path):
    method, data = linear(), Digits(batch_size=64, seed=3)  # 500 = 7 * 64 + 52
    record = Record(tmp_path / "run")
    run = trainer(4, val_check_interval=2, logger=record)
    run.fit(method, data)
    images, labels = next(data.reference("test", 500))
    with torch.no_grad():
        average, live = (m(from_uint8(images)) for m in (method.ema["network"], method.network))
    expected = {
        "val/accuracy": (average.argmax(1) == labels).double().mean().item(),
        "val/cross_entropy": -_log_softmax(average)[torch.arange(500), labels].mean().item(),
    }
    assert (live.argmax(1) == labels).double().mean().item() != expected["val/accuracy"]
    rows = [row for row in read_rows(tmp_path / "run") if "val/accuracy" in row]
    assert [row["updates"] for row in rows] == [2, 4]  # the trial before training is not reported
    assert rows[-1]["images"] == 256
    for key, value in expected.items():
        assert rows[-1][key] == pytest.approx(value, rel=1e-5)
        assert run.callback_metrics[key].item() == pytest.approx(value, rel=1e-5)
    assert rows[-1]["val/accuracy"] == expected["val/accuracy"]  # to the last digit
    assert method.training


def test_validation_changes_nothing_of_the_training():
    methods = []
    for limit in (0, None):
        method = linear(augment=RandomTranslation(1))
        trainer(4, val_check_interval=1, limit_val_batches=limit).fit(
            method, Digits(batch_size=64, seed=3)
        )
        methods.append(method)
    first, second = (m.state_dict() for m in methods)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.ddp
@pytest.mark.xdist_group("ddp")
@pytest.mark.parametrize("test", [499, 49])
def test_two_ranks_report_what_one_process_reports(tmp_path, test):
    one = validated(1, 24, test)  # uneven: 250 and 249 images; 3 and 2 batches
    for rank in together(tmp_path, validated, 2, 12, test):
        assert rank["val/accuracy"] == one["val/accuracy"]
        assert rank["val/cross_entropy"] == pytest.approx(one["val/cross_entropy"], rel=1e-5)


def test_the_checkpoint_of_the_best_accuracy_is_kept(tmp_path):
    class Unlearns(Classifier):
        """Reads all of a class less after the eighth update."""

        def validation_step(self, batch, batch_idx):
            before = self.ema["network"][1].bias.clone()
            if self.updates > 8:
                with torch.no_grad():
                    self.ema["network"][1].bias.add_(torch.arange(10.0) * 100)
            super().validation_step(batch, batch_idx)
            with torch.no_grad():
                self.ema["network"][1].bias.copy_(before)

    torch.manual_seed(0)
    method = Unlearns(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), optimizer=SGD(lr=0.1))
    best = Checkpoint(every=10**6, keep=1, monitor="val/accuracy", mode="max")
    options = {"callbacks": [best], "logger": Record(tmp_path), "default_root_dir": tmp_path}
    run = trainer(16, val_check_interval=4, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(method, Digits(batch_size=64, seed=3))
    read = {row["images"]: row["val/accuracy"] for row in read_rows(tmp_path) if len(row) > 4}
    read = {images: value for images, value in read.items() if value is not None}
    assert best.best.name == f"images-{max(read, key=read.get):012d}.ckpt"
    assert max(read, key=read.get) in {256, 512}
    assert best.best.is_file()


# -- use ------------------------------------------------------------------------------------------


def test_predictions_are_of_the_averaged_weights_in_evaluation_mode():
    method = Classifier(SmallCNN((1, 8, 8), 10, width=4))
    method.configure_model()
    with torch.no_grad():
        method.ema["network"].head.bias.add_(7.0)
    images = torch.randn(3, 1, 8, 8)
    predicted = method.predict(images)
    assert not predicted.requires_grad
    assert method.training
    torch.testing.assert_close(predicted, method.ema["network"](images))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_misread_images_come_first_and_have_a_red_frame(channels):
    class Brightness(nn.Module):
        def forward(self, images):
            return torch.stack([-images.mean((1, 2, 3)), images.mean((1, 2, 3))], 1)

    images = torch.tensor([0.5, -0.5, 0.5]).view(3, 1, 1, 1).expand(3, channels, 16, 16)
    method = Classifier(Brightness())
    sheet = method.pictures({"image": images, "label": torch.tensor([1, 0, 0])})["predictions"]
    cell = 48 + 2 * 2 + 2  # pixels, frames, and the space between
    assert sheet.shape == (3, 2 * cell + 2, 2 * cell + 2)
    red = torch.tensor([1.0, -0.8, -0.8])
    corners = [sheet[:, 2 + cell * row, 2 + cell * column] for row in (0, 1) for column in (0, 1)]
    assert [torch.equal(corner, red) for corner in corners] == [True, False, False, False]
    insides = [sheet[0, 28, 28], sheet[0, 28, 28 + cell], sheet[0, 28 + cell, 28]]
    assert torch.equal(torch.stack(insides), torch.tensor([0.5, 0.5, -0.5]))  # the last is third
    assert (sheet == red.view(3, 1, 1)).all(0).sum() == 52**2 - 48**2


def test_without_labels_there_is_nothing_to_show():
    method = linear()
    assert method.pictures() == {}
    assert method.pictures({"image": torch.zeros(2, 1, 8, 8)}) == {}


# -- errors ---------------------------------------------------------------------------------------


def test_a_batch_without_labels_is_refused():
    with pytest.raises(ValueError, match=r"needs batches with a 'label', got only \['image'\]"):
        linear().training_step({"image": torch.zeros(2, 1, 8, 8)}, 0)


@pytest.mark.parametrize(
    ("labels", "says"),
    [(None, "Batches has no labels"), (torch.zeros(8).long(), "Batches has one class only")],
)
def test_data_with_nothing_to_tell_apart_is_refused(labels, says):
    data = Batches(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), labels, batch_size=4)
    with pytest.raises(ValueError, match=says):
        trainer(1).fit(linear(), data)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (SmallCNN((1, 8, 8), 9), "num_classes = 9, but the data has 10"),
        (SmallCNN((1, 9, 8), 10), r"image_shape = \(1, 9, 8\), but the data has \(1, 8, 8\)"),
    ],
)
def test_a_network_for_other_data_is_refused_before_the_first_step(network, says, digits):
    with pytest.raises(ValueError, match=says):
        trainer(1).fit(Classifier(network), digits)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="label_smoothing must be at least 0 and below 1, got 1"):
        linear(label_smoothing=1.0)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        Classifier(frozen).configure_optimizers()
