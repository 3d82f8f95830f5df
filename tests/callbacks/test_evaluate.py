import json

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from imgsynth.callbacks import Checkpoint, Evaluate, best_checkpoint
from imgsynth.data import Digits
from imgsynth.loading import load
from imgsynth.loggers.record import read_rows
from imgsynth.methods import HingeGAN
from imgsynth.metrics.classifier import ClassifierExtractor
from imgsynth.metrics.evaluation import Evaluation
from imgsynth.metrics.extractor import ModuleExtractor
from imgsynth.metrics.pixels import PixelExtractor
from imgsynth.networks import MLPDiscriminator, MLPGenerator, SmallCNN


def pooled() -> ModuleExtractor:
    layers = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
    return ModuleExtractor(layers, num_features=4, channels=1)


def evaluate(**kwargs) -> Evaluate:
    return Evaluate(
        **{"every": 12, "metrics": "fd,recall", "num": 70, "extractor": pooled(), **kwargs}
    )


def train(tmp_path, gan, data, trainer, *callbacks, images=40, **kwargs):
    made = trainer(tmp_path, *callbacks, max_steps=images // 4, **kwargs)
    made.fit(gan(), datamodule=data())
    return made


def scored(folder):
    return {row["images"]: row for row in read_rows(folder) if "protocols" in row}


def test_scores_are_rows_at_their_cadence_and_at_the_end(tmp_path, gan, data, trainer):
    train(tmp_path, gan, data, trainer, evaluate())
    rows = scored(tmp_path)
    assert list(rows) == [12, 24, 36, 40]
    assert all({"val/fd70", "val/recall70"} <= row.keys() for row in rows.values())


def test_the_row_names_its_protocol_and_the_folder_holds_it(tmp_path, gan, data, trainer):
    train(tmp_path, gan, data, trainer, evaluate())
    row = scored(tmp_path)[40]
    protocols = json.loads((tmp_path / "protocols.json").read_text())
    fd = protocols[row["protocols"]["val/fd70"]]
    assert fd["score"] == "fd"
    assert fd["num_generated"] == 70
    assert fd["weights"] == "averaged"
    assert fd["real"]["fingerprint"] == data().fingerprint_of("train")
    assert len(protocols) == 2


def test_training_is_the_same_with_and_without_scores(tmp_path, gan, data, trainer):
    with_scores = train(tmp_path / "with", gan, data, trainer, evaluate(), Checkpoint())
    without = train(tmp_path / "without", gan, data, trainer, Checkpoint())
    one, other = (t.lightning_module.state_dict() for t in (with_scores, without))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_checkpoint_with_the_best_score_is_kept_and_scores_the_same_again(
    tmp_path, gan, data, trainer
):
    checkpoint = Checkpoint(every=1000, keep=1, monitor="val/fd70")
    train(tmp_path, gan, data, trainer, evaluate(), checkpoint, images=80)
    rows = scored(tmp_path)
    best = min(rows, key=lambda images: rows[images]["val/fd70"])
    assert best != 80, "the last one would be kept anyway"
    assert checkpoint.best.name == f"images-{best:012d}.ckpt"
    assert best_checkpoint(tmp_path) == checkpoint.best
    evaluation = Evaluation(data(), pooled(), ["fd"], folder=tmp_path, num=70, conditional=True)
    again = evaluation.score(load(checkpoint.best)).means()
    assert again["fd70"] == rows[best]["val/fd70"]


def test_only_a_score_of_these_very_weights_makes_a_checkpoint_the_best(
    tmp_path, gan, data, trainer, recwarn
):
    checkpoint = Checkpoint(every=4, keep=0, monitor="val/fd70")
    train(tmp_path, gan, data, trainer, evaluate(), checkpoint)
    assert not [w for w in recwarn if "is not reported" in str(w.message)]
    assert int(checkpoint.best.stem.partition("-")[2]) in {12, 24, 36, 40}


class Stop(Callback):
    """Ends a run as a crash would."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.images_seen == 28:
            raise RuntimeError("stopped")


def test_a_resumed_run_has_the_scores_of_an_uninterrupted_one(
    tmp_path, gan, data, trainer, recwarn
):
    kwargs = {"every": 8, "keep": 0, "monitor": "val/fd70"}
    train(tmp_path / "whole", gan, data, trainer, evaluate(), Checkpoint(**kwargs))
    with pytest.raises(RuntimeError, match="stopped"):
        train(tmp_path / "two", gan, data, trainer, evaluate(), Stop(), Checkpoint(**kwargs))
    checkpoint = Checkpoint(**kwargs)
    resumed = trainer(tmp_path / "two", evaluate(), checkpoint, max_steps=10)
    path = tmp_path / "two/checkpoints/images-000000000024.ckpt"
    resumed.fit(gan(), datamodule=data(), ckpt_path=path, weights_only=True)
    assert not [w for w in recwarn if "another protocol" in str(w.message)]
    whole, two = scored(tmp_path / "whole"), scored(tmp_path / "two")
    assert [(i, r["val/fd70"]) for i, r in whole.items()] == [
        (i, r["val/fd70"]) for i, r in two.items()
    ]
    assert best_checkpoint(tmp_path / "whole").name == checkpoint.best.name


def test_a_score_by_another_protocol_does_not_compare_with_the_best_before(
    tmp_path, gan, data, trainer
):
    def fit(extractor, steps, **kwargs):
        checkpoint = Checkpoint(every=1000, keep=0, monitor="val/fd70")
        made = trainer(tmp_path, evaluate(extractor=extractor), checkpoint, max_steps=steps)
        made.fit(gan(), datamodule=data(), weights_only=True, **kwargs)
        return checkpoint

    first = fit(pooled(), 6)
    halves = nn.Sequential(nn.AvgPool2d((8, 4)), nn.Flatten())
    other = ModuleExtractor(halves, num_features=2, channels=1)
    path = tmp_path / "checkpoints/images-000000000024.ckpt"
    with pytest.warns(UserWarning, match="val/fd70 is measured by another protocol now"):
        second = fit(other, 12, ckpt_path=path)
    assert first.best.is_file()
    rows = {images: row["val/fd70"] for images, row in scored(tmp_path).items() if images > 24}
    assert first.best.name <= "images-000000000024.ckpt"
    assert second.best.name == f"images-{min(rows, key=rows.get):012d}.ckpt"


def test_the_best_by_another_score_is_kept(tmp_path, gan, data, trainer):
    def fit(steps, monitor, **kwargs):
        checkpoint = Checkpoint(every=4, keep=1, monitor=monitor)
        made = trainer(tmp_path, evaluate(metrics="fd,swd"), checkpoint, max_steps=steps)
        made.fit(gan(), datamodule=data(), weights_only=True, **kwargs)
        return checkpoint

    first = fit(6, "val/fd70")
    path = tmp_path / "checkpoints/images-000000000024.ckpt"
    with pytest.warns(UserWarning, match=r"was so by val/fd70; it is kept, .* by val/swd70"):
        second = fit(12, "val/swd70", ckpt_path=path)
    kept = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert kept == {first.best.name, second.best.name, "images-000000000048.ckpt"}


def test_a_resumed_run_keeps_its_judge(tmp_path, gan, trainer, monkeypatch):

    def fit(steps, **kwargs):
        shape = (1, 8, 8)
        method = HingeGAN(MLPGenerator(shape, 10, latent_dim=4), MLPDiscriminator(shape, 10))
        callback = Evaluate(every=10_000, metrics="cls_score", num=64)
        made = trainer(tmp_path, callback, Checkpoint(), max_steps=steps)
        made.fit(method, datamodule=Digits(), weights_only=True, **kwargs)
        return callback._evaluation.extractor.weights_hash()

    first = fit(1)
    judge = ClassifierExtractor.load(tmp_path / "judge.pt")
    nn.init.normal_(judge.network.head.weight)
    judge.save(tmp_path / "judge.pt")  # as one that another machine trained
    path = tmp_path / "checkpoints/images-000000000064.ckpt"
    assert fit(2, ckpt_path=path) == judge.weights_hash() != first


def test_a_classifier_that_cannot_read_is_told(tmp_path, gan, data, trainer):

    blind = SmallCNN((1, 8, 8), num_classes=2, width=4, num_features=4)
    judge = ClassifierExtractor(blind, accuracy=0.55, num_heldout=20, data="Noise")
    with pytest.warns(UserWarning, match=r"reads 55% of 20 held-out images rightly .* 50%"):
        train(tmp_path, gan, data, trainer, evaluate(metrics="cls_score", extractor=judge))


def test_several_seeds_give_the_mean_and_the_range(tmp_path, gan, data, trainer):
    train(tmp_path, gan, data, trainer, evaluate(seeds=3))
    row = scored(tmp_path)[40]
    assert row["val/fd70_least"] < row["val/fd70"] < row["val/fd70_greatest"]


def test_scores_are_told_beside_those_of_real_images(tmp_path, gan, data, trainer, capsys):
    train(tmp_path, gan, data, trainer, evaluate())
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("40 images")]
    assert len(told) == 1
    assert "fd70" in told[0]
    assert ", real 0." in told[0]
    assert "10 generated, 10 held-out real images" in told[0]


def test_an_alarm_follows_the_scores_once(tmp_path, gan, data, trainer, capsys, monkeypatch):
    told = ["With 10 images each, precision 0.9 ...", "With 10 images each, precision 0.8 ..."]
    monkeypatch.setattr(Evaluation, "alarm", lambda *_: told[0] if len(told) == 1 else told.pop())
    train(tmp_path, gan, data, trainer, evaluate(metrics="precision,recall"))
    lines = capsys.readouterr().out.splitlines()
    assert [n for n, line in enumerate(lines) if "With 10 images each" in line] == [
        1 + next(n for n, line in enumerate(lines) if line.startswith("12 images"))
    ]


def test_pixels_need_neither_labels_nor_weights(tmp_path, gan, data, trainer):
    callback = Evaluate(every=20, metrics="swd", num=64)
    train(tmp_path, gan, data, trainer, callback)
    protocols = json.loads((tmp_path / "protocols.json").read_text())
    assert [p["extractor"]["name"] for p in protocols.values()] == ["pixels"]


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"metrics": "fdd"}, "no score 'fdd'.* There are fid, is"),
        ({"metrics": "fid,fd", "extractor": None}, "one evaluation has one space"),
        ({"every": 0}, "every must be at least 1"),
        ({"num": 1}, "num must be at least 2"),
        ({"num": "many"}, "num: expected a number"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"protocol": "clean", "extractor": None}, "Did you mean clean-fid"),
        ({"protocol": "clean-fid"}, "extractor and protocol both"),
        ({"weights": "x.pt"}, "extractor and weights both"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(kwargs, said):
    with pytest.raises(ValueError, match=said):
        evaluate(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"num": 4}, "at least 5 generated images"),
        ({"split": "val"}, "split must be one of train, got 'val'"),
        ({"metrics": "fid", "num": None}, "ask for fd"),
    ],
)
def test_what_cannot_be_scored_stops_before_training(tmp_path, gan, data, trainer, kwargs, said):
    with pytest.raises(ValueError, match=said):
        train(tmp_path, gan, data, trainer, evaluate(**kwargs))
    assert not (tmp_path / "record.jsonl").exists()


def test_a_plain_loader_has_no_real_images_to_compare_with(tmp_path, gan, data, trainer):
    made = trainer(tmp_path, evaluate(), max_steps=2)
    with pytest.raises(ValueError, match="give the Trainer a datamodule"):
        made.fit(gan(), data().train_dataloader())


def test_the_cache_of_real_features_is_shared_by_runs(tmp_path, gan, data, trainer, monkeypatch):
    train(tmp_path / "one", gan, data, trainer, evaluate())
    seen = []
    plain = PixelExtractor.extract

    def counted(self, images):
        seen.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(PixelExtractor, "extract", counted)
    monkeypatch.setattr(PixelExtractor, "probe", lambda self, shape: "not counted")
    first = Evaluate(every=100, metrics="swd", num=2, extractor=PixelExtractor(size=7))
    train(tmp_path / "two", gan, data, trainer, first)
    assert sum(seen) > 20
    seen.clear()
    second = Evaluate(every=100, metrics="swd", num=2, extractor=PixelExtractor(size=7))
    train(tmp_path / "three", gan, data, trainer, second)
    assert sum(seen) == 2
