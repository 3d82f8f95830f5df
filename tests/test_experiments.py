"""Every recipe that ships is built and trained for two updates through the command line."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgsynth.cli import main
from imgsynth.cli.recipes import find, recipes
from imgsynth.loggers.record import read_rows

NAMES = sorted(name for name in recipes() if not name.startswith("base/"))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Small stand-ins for data that a test does not have, by the class of the recipe."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0).integers
    clothes = {"images": draw(0, 256, (80, 28, 28)), "labels": np.arange(80) % 10}
    np.savez("clothes.npz", **{k: v.astype(np.uint8) for k, v in clothes.items()})
    things = {"images": draw(0, 256, (80, 32, 32, 3)), "labels": np.arange(80) % 10}
    np.savez("things.npz", **{k: v.astype(np.uint8) for k, v in things.items()})
    Path("large").mkdir()
    for i in range(8):
        Image.fromarray(draw(0, 256, (96, 150, 3)).astype(np.uint8)).save(f"large/{i}.png")
    clothes_options = ["--data", "Arrays", "--data.images", "clothes.npz"]
    return {
        "Digits": ["--data.batch_size", "8"],
        "CIFAR10": ["--data", "Arrays", "--data.images", "things.npz", "--data.batch_size", "4"],
        "FashionMNIST": [*clothes_options, "--data.batch_size", "4"],
        "ImageFolder": ["--data.root", "large", "--data.batch_size", "4"],
        "Photos": ["--data.batch_size", "2"],
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_for_two_updates(name, data, capsys):
    text = find(name).read_text()
    kind = next(line for line in text.splitlines() if "imgsynth.data." in line).rpartition(".")[2]
    options = [*data[kind], "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]
    size = int(options[options.index("--data.batch_size") + 1])
    steps = next((int(s.split()[1]) for s in text.splitlines() if "discriminator_steps" in s), 1)
    images = str(2 * size * steps)
    assert main(["fit", "-c", name, *options, "--images", images, "--name", "run"]) == 0
    rows = [row for row in read_rows(Path("runs/run")) if "protocols" not in row]
    assert [row["updates"] for row in rows] == [1, 2]
    if name.startswith("classification/"):
        assert Path("runs/run/final-predictions.png").is_file()
        return
    if name.startswith("vae/"):
        assert Path("runs/run/final-reconstructions.png").is_file()
    if "methods.VQVAE" in text and "prior:" not in text:
        assert main(["sample", "runs/run", "--out", "images"]) == 2
        assert "This VQVAE has no prior" in capsys.readouterr().err
        return
    assert Path("runs/run/final.png").is_file()
    assert main(["sample", "runs/run", "--num", "3", "--out", "images"]) == 0
    capsys.readouterr()
