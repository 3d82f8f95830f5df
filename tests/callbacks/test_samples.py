from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image

from imgsynth.callbacks import Checkpoint, Length, Samples
from imgsynth.images import grid, to_uint8
from imgsynth.methods import NonFiniteError


def sheets(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "samples").glob("*.png"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


@pytest.mark.parametrize(
    ("every", "expected"), [(10, [0, 12, 20, 32, 36]), (4, list(range(0, 37, 4))), (99, [0, 36])]
)
def test_a_sheet_at_the_start_at_each_multiple_and_at_the_end(
    gan, data, trainer, tmp_path, every, expected
):
    run = trainer(tmp_path, Length(36), Samples(every), enable_checkpointing=False)
    run.fit(gan(), data())
    assert sheets(tmp_path) == expected
    with Image.open(tmp_path / "training.gif") as gif:
        assert gif.n_frames == len(expected)
        size = gif.size
    height, width = pixels(tmp_path / "final.png").shape
    assert size == (width, height + 14)  # room for the caption


def test_about_twenty_sheets_without_a_number(gan, data, trainer, tmp_path):
    run = trainer(tmp_path, Length(180), Samples(gif=False), enable_checkpointing=False)
    run.fit(gan(), data())
    # 9 images a stage, 4 an update
    assert sheets(tmp_path) == [0, *sorted({-(-n // 4) * 4 for n in range(9, 181, 9)})]
    assert not (tmp_path / "training.gif").exists()


def test_a_sheet_shows_the_averaged_weights_on_fixed_latents(gan, data, trainer, tmp_path):
    method = gan()
    trainer(tmp_path, Length(12), Samples(99), enable_checkpointing=False).fit(method, data())
    expected = grid(method.sample(16, seed=0, ema=True), columns=2)
    live = grid(method.sample(16, seed=0, ema=False), columns=2)
    assert not torch.equal(to_uint8(expected), to_uint8(live))
    for name in ("final.png", "samples/000000000012.png"):
        assert np.array_equal(pixels(tmp_path / name), to_uint8(expected)[0].numpy())
    with Image.open(tmp_path / "final.png") as picture:
        assert picture.text == {
            "Software": "imgsynth",
            "Method": "imgsynth.methods.HingeGAN",
            "Images seen": "12",
            "Updates": "3",
            "Seed": str(method.seed),
            "Weights": "averaged",
        }


def test_drawing_leaves_training_as_it_is(gan, data, trainer, tmp_path):
    plain = gan()
    trainer(None, Length(24), enable_checkpointing=False).fit(plain, data())
    drawn = gan()
    trainer(tmp_path, Length(24), Samples(4), enable_checkpointing=False).fit(drawn, data())
    state = drawn.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())


def test_a_resumed_run_draws_the_same_sheets_and_removes_those_beyond(gan, data, trainer, tmp_path):
    run = trainer(tmp_path, Length(40), Samples(10), Checkpoint(4, 0))
    run.fit(gan(), data())
    folder = tmp_path / "samples"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / f"{39:012d}.png").write_bytes(before[f"{40:012d}.png"])
    (folder / "mine.png").touch()
    again = trainer(tmp_path, Length(40), Samples(10), Checkpoint(4, 0))
    file = tmp_path / "checkpoints" / f"images-{16:012d}.ckpt"
    again.fit(gan(), data(), ckpt_path=file, weights_only=True)
    (folder / "mine.png").unlink()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_without_a_record_it_draws_in_the_trainers_folder(gan, data, trainer, tmp_path):
    run = trainer(None, Length(8), Samples(), enable_checkpointing=False, default_root_dir=tmp_path)
    run.fit(gan(), data())
    assert sheets(tmp_path) == [0, 4, 8]
    assert (tmp_path / "final.png").exists()


def test_a_method_shows_several_things_and_gets_the_same_real_images(gan, data, trainer, tmp_path):
    held_out = torch.arange(64, dtype=torch.uint8).view(1, 8, 8).expand(3, 8, 8)
    module = data()
    module.splits = ("train", "test")
    train = module.load_split("train")
    module.load_split = lambda split: (
        train if split == "train" else (held_out[:, None], torch.ones(3, dtype=torch.int64))
    )
    method = gan()
    method.pictures = lambda batch: {
        "samples": torch.zeros(3, 16, 16),
        "real": grid(batch["image"], scale=1),
        "labels": batch["label"].float().view(1, 1, 3).expand(1, 16, 3),
    }
    run = trainer(tmp_path, Length(8), Samples(99), enable_checkpointing=False)
    run.fit(method, module)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.[pg][ni][gf]"))
    assert found == [
        "final-labels.png",
        "final-real.png",
        "final.png",
        "samples/000000000000.png",
        "samples/000000000008.png",
        "samples/labels-000000000000.png",
        "samples/labels-000000000008.png",
        "samples/real-000000000000.png",
        "samples/real-000000000008.png",
        "training-labels.gif",
        "training-real.gif",
        "training.gif",
    ]
    assert np.array_equal(pixels(tmp_path / "final-real.png")[2:10, 2:10], held_out[0].numpy())
    assert (pixels(tmp_path / "final-labels.png") == 255).all()


def test_long_films_are_thinned_but_end_at_the_end(gan, data, trainer, tmp_path, monkeypatch):
    monkeypatch.setattr("imgsynth.callbacks.samples._MOST_FRAMES", 4)
    method = gan()
    method.pictures = lambda batch: {"samples": torch.full((1, 8, 160), method.updates / 5 - 1)}
    trainer(tmp_path, Length(40), Samples(4), enable_checkpointing=False).fit(method, data())
    with Image.open(tmp_path / "training.gif") as gif:
        shades = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            shades.append(gif.convert("L").getpixel((80, 4)))
        duration = gif.info["duration"]
    assert len(sheets(tmp_path)) == 11
    # of the updates 0 to 10, a third: 1, 4, 7, 10
    assert shades == to_uint8(torch.tensor([1, 4, 7, 10]) / 5 - 1).tolist()
    assert duration == 2200


def test_a_method_that_shows_nothing_leaves_nothing(gan, data, trainer, tmp_path):
    method = gan()
    method.pictures = lambda batch: {}
    trainer(tmp_path, Length(8), Samples(), enable_checkpointing=False).fit(method, data())
    assert not (tmp_path / "samples").exists()


def test_poisoned_weights_are_named_instead_of_drawn(gan, data, trainer, tmp_path):
    class Poison(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            next(pl_module.discriminator.parameters()).data.fill_(float("nan"))

    run = trainer(tmp_path, Poison(), Length(40), Samples(4), enable_checkpointing=False)
    with pytest.raises(NonFiniteError, match="discriminator"):
        run.fit(gan(), data())
