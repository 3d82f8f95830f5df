import json
from pathlib import Path

import pytest

from imgsynth.cli import main
from imgsynth.loggers.record import read_rows

SCORES = """\
evaluate: {every: 64, metrics: "fd,cls_score,precision,recall", num: 300}
checkpoint: {every: 128, keep: 1}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny):
    """The folder of a small run that was scored while it was trained."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(tiny.replace("images: 128", "images: 256") + SCORES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "-c", "tiny.yaml"]) == 0
    return folder / "runs" / "tiny"


def scored(folder):
    return {row["images"]: row for row in read_rows(folder) if "protocols" in row}


def written(out):
    return json.loads(Path(out.splitlines()[-1].removeprefix("Written to ")).read_text())


def values(report):
    return {name: row["mean"] for name, row in report["scores"].items()}


def test_a_run_is_scored_in_training_and_leaves_its_judge(trained):
    rows = scored(trained)
    assert list(rows) == [64, 128, 192, 256]
    assert {"val/fd300", "val/cls_score300", "val/precision300"} <= rows[256].keys()
    assert (trained / "judge.pt").is_file()


@pytest.mark.parametrize("wanted", ["last", "best"])
def test_evaluating_again_gives_the_very_digits_of_training(here, run, trained, wanted):
    rows = scored(trained)
    best = min(rows, key=lambda images: rows[images]["val/fd300"])
    row = rows[256 if wanted == "last" else best]
    code, out, err = run("evaluate", str(trained), "--checkpoint", wanted)
    assert code == 0, err
    report = written(out)
    assert report["provenance"]["images_seen"] == row["images"]
    assert values(report) == {n: row[f"val/{n}"] for n in values(report)}
    assert list(values(report)) == ["fd300", "cls_score300", "precision300", "recall300"]
    hashes = {f"val/{n}": r["protocol"]["hash"] for n, r in report["scores"].items()}
    assert hashes == row["protocols"]


def test_a_run_in_half_precision_scores_the_same_again(here, run):
    options = (
        "--trainer.precision",
        "bf16-true",
        "--evaluate.metrics",
        "swd",
        "--evaluate.num",
        "64",
    )
    assert run("fit", "-c", "tiny.yaml", *options)[0] == 0
    report = written(run("evaluate", "runs/tiny")[1])
    assert report["provenance"]["precision"] == "bfloat16"
    assert values(report) == {"swd64": scored("runs/tiny")[128]["val/swd64"]}


def test_the_table_shows_scores_floors_protocols_and_what_they_are_of(here, run, trained):
    _, out, _ = run("evaluate", str(trained), "--seeds", "2")
    report = written(out)
    row = report["scores"]["fd300"]
    assert len(row["values"]) == 2
    assert row["least"] < row["mean"] < row["greatest"]
    assert row["real_images"]["score"] < row["least"]
    assert row["real_images"]["num"] == 300
    assert row["real_images"]["split"] == "test"
    assert row["protocol"]["hash"] in out
    assert "256 images seen" in out
    assert "300 generated images (averaged weights, seeds 0, 1)" in out
    assert "1,297 real ones of Digits, split train" in out
    assert "real images of test" in out


def test_other_scores_may_be_asked_for_and_have_other_protocols(here, run, trained):
    _, out, _ = run("evaluate", str(trained), "--metrics", "fd,swd", "--num", "400")
    report = written(out)
    assert list(report["scores"]) == ["fd400", "swd400"]
    live = written(run("evaluate", str(trained), "--raw")[1])
    assert live["scores"]["fd300"]["protocol"]["weights"] == "live"
    assert live["scores"]["fd300"]["mean"] != values(report)["fd400"]


def test_another_extractor_may_be_given(here, run, trained):
    options = ("--extractor", "PixelExtractor", "--extractor.size", "4", "--metrics", "fd,swd")
    code, out, err = run("evaluate", str(trained), *options)
    assert code == 0, err
    assert written(out)["scores"]["fd300"]["protocol"]["extractor"] == {
        "name": "pixels", "weights": "none", "size": 4,
    }  # fmt: skip


def test_the_protocols_are_explained(run):
    code, out, _ = run("evaluate", "--protocols")
    assert code == 0
    for name in ("torch-fidelity", "pytorch-fid", "clean-fid", "stylegan2-ada", "studiogan"):
        assert name in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metrics", "fidd"], "no score 'fidd'"),
        (["--metrics", "fid,fd"], "one evaluation has one space"),
        (["--metrics", "fid", "--weights", "none.pth"], "none.pth"),
        (["--checkpoint", "first"], "There is no checkpoint 'first'"),
        (["--num", "40"], "at least"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--seeds", "two"], "seeds"),
        (["--protocol", "cleanfid"], "clean-fid"),
        (["--split", "validation"], "split must be one of"),
        (["--metric", "fd"], "--metrics"),
        (["--extractor", "Pixel"], "PixelExtractor"),
    ],
)
def test_mistakes_are_told_in_three_lines(here, run, trained, options, said):
    code, _, err = run("evaluate", str(trained), *options)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) <= 3


def test_a_run_that_kept_no_best_says_so(here, run):
    assert run("fit", "-c", "tiny.yaml")[0] == 0
    code, _, err = run("evaluate", "runs/tiny", "--checkpoint", "best")
    assert code == 2
    assert "it was not scored" in err


def test_a_run_that_was_not_scored_is_scored_by_the_data_s_own_classifier(here, run):
    assert run("fit", "-c", "tiny.yaml")[0] == 0
    code, out, err = run("evaluate", "runs/tiny", "--num", "100")
    assert code == 0, err
    assert list(written(out)["scores"]) == ["fd100", "cls_score100", "precision100", "recall100"]
    assert "seeds 0, 1, 2" in out


def test_a_missing_file_of_weights_stops_before_training(here, run):
    options = ("--evaluate.metrics", "fid", "--evaluate.weights", "none.pth")
    code, _, err = run("fit", "-c", "tiny.yaml", *options)
    assert code == 2
    assert "none.pth" in err
    assert not Path("runs/tiny/record.jsonl").exists()
