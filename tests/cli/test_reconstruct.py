import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import imgsynth
from imgsynth.cli import main
from imgsynth.cli.reconstruct import _parser, _places_first
from imgsynth.data import Digits
from imgsynth.data.rule import Rule
from imgsynth.images import from_uint8, to_uint8
from imgsynth.seeding import fold

NETWORK = "init_args: {width: 16, latent_dim: 3}"
VAE = f"""\
images: 1280
model:
  class_path: VAE
  init_args:
    encoder: {{class_path: MLPEncoder, {NETWORK}}}
    decoder: {{class_path: MLPDecoder, {NETWORK}}}
    likelihood: {{class_path: Gaussian, init_args: {{sigma: 0.5}}}}
    optimizer: {{class_path: Adam, init_args: {{lr: 0.01}}}}
    ema_half_life: 200
data: {{class_path: Digits}}
trainer: {{accelerator: cpu, log_every_n_steps: 20, enable_progress_bar: false}}
samples: {{gif: false}}
"""
DENOISING = VAE.replace("latent_dim: 3}", "latent_dim: 3, num_classes: 0}").replace(
    "    optimizer:", "    corruption: {class_path: my_corruption.Rain}\n    optimizer:"
)
RAIN = """\
import torch
from torch import nn
from imgsynth.describe import Described

class Rain(Described, nn.Module):
    def forward(self, images):
        return torch.where(torch.rand(images.shape) < 0.3, -1.0, images)
"""
SIZE = "init_args: {code_dim: 4, downsamplings: 1, width: 8}"
CODES = f"""\
images: 64
model:
  class_path: imgsynth.methods.vqvae.VQVAE
  init_args:
    encoder: {{class_path: imgsynth.networks.spatial.SpatialEncoder, {SIZE}}}
    quantizer:
      class_path: imgsynth.networks.quantizer.VectorQuantizer
      init_args: {{num_codes: 8, code_dim: 4}}
    decoder: {{class_path: imgsynth.networks.spatial.SpatialDecoder, {SIZE}}}
data: {{class_path: Digits}}
trainer: {{accelerator: cpu, log_every_n_steps: 1, enable_progress_bar: false}}
samples: {{gif: false}}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with small runs: a conditional VAE, and an unconditional one that denoises."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("my_corruption.py").write_text(RAIN)
        Path("vae.yaml").write_text(VAE)
        Path("denoising.yaml").write_text(DENOISING)
        assert main(["fit", "-c", "vae.yaml"]) == 0
        assert main(["fit", "-c", "denoising.yaml"]) == 0
    return folder / "runs"


@pytest.fixture
def digits():
    """The held-out images ``(500, 1, 8, 8)`` in [-1, 1], and their labels."""
    images, labels = next(iter(Digits().reference("test", 500)))
    return from_uint8(images), labels


@pytest.fixture
def photos(here, digits):
    """Held-out digits as files, in a folder for each class."""
    for i in range(6):
        folder = here / "photos" / str(int(digits[1][i]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(to_uint8(digits[0][i, 0]).numpy()).save(folder / f"{i}.png")
    return here / "photos"


def table(folder):
    with (Path(folder) / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(folder, name):
    return np.array([float(row[name]) for row in table(folder)])


def pictures(folder):
    paths = sorted((Path(folder) / "images").rglob("*.png"))
    root = Path(folder) / "images"
    return {p.relative_to(root).as_posix(): np.asarray(Image.open(p)) for p in paths}


def cells(path, size=8, scale=6):
    """The images of a grid, row by row."""
    grid = np.asarray(Image.open(path))
    step = size * scale + 2
    rows, columns = grid.shape[0] // step, grid.shape[1] // step
    return [
        [
            grid[2 + r * step : 2 + r * step + size * scale : scale,
                 2 + c * step : 2 + c * step + size * scale : scale]
            for c in range(columns)
        ]
        for r in range(rows)
    ]  # fmt: skip


def whole(images):
    return to_uint8(images)[:, 0].numpy()


def done(run, *argv):
    code, out, err = run("reconstruct", *map(str, argv))
    assert code == 0, err
    return out


def test_files_hold_what_python_gets(here, run, runs, digits):
    out = done(run, runs / "vae", "--out", "out")
    assert "500 images of Digits, split test" in out
    assert out.splitlines()[-1].endswith("interpolation.png, table.csv and 500 images to out")
    found = pictures("out")
    assert list(found) == [f"{i:06d}.png" for i in range(500)]
    method = imgsynth.load(runs / "vae")
    expected = whole(method.reconstruct(*digits)).astype(int)
    # other batches round in another way
    assert np.abs(np.stack(list(found.values())) - expected).max() <= 1
    text = Image.open("out/images/000003.png").text
    assert (text["Method"], text["Weights"]) == ("imgsynth.methods.VAE", "averaged")


def test_the_table_has_a_row_an_image_with_errors_and_likelihoods(here, run, runs, digits):
    done(run, runs / "vae", "--num", "70", "--out", "out")
    rows = table("out")
    images, labels = (t[:70] for t in digits)
    assert list(rows[0]) == [
        "place", "image", "label", "mse", "psnr", "elbo", "log_likelihood", "kl", "bpd",
        "anomaly_score",
    ]  # fmt: skip
    assert [int(row["place"]) for row in rows] == list(range(70))
    assert [int(row["label"]) for row in rows] == labels.tolist()
    method = imgsynth.load(runs / "vae")
    made = method.reconstruct(images, labels)
    error = ((made - images) ** 2).numpy().reshape(70, -1).mean(1)
    assert column("out", "mse") == pytest.approx(error, rel=1e-4)
    assert column("out", "psnr") == pytest.approx(20 * np.log10(2 / np.sqrt(error)), rel=1e-4)
    log = torch.cat([
        method.log_likelihood(
            images[i:][:64], labels[i:][:64], num_samples=10, seed=fold(0, "block", i)
        )
        for i in (0, 64)
    ])  # fmt: skip
    assert column("out", "log_likelihood") == pytest.approx(log.numpy(), rel=1e-4)
    assert column("out", "anomaly_score").tolist() == (-column("out", "log_likelihood")).tolist()
    bits = -column("out", "log_likelihood") / (64 * np.log(2))
    assert column("out", "bpd") == pytest.approx(bits, rel=1e-4)
    mu, logvar = (t.numpy() for t in method.encode(images, labels))
    kl = 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar).sum(1)
    assert column("out", "kl") == pytest.approx(kl, rel=1e-4)


def test_the_numbers_are_those_of_the_command_likelihood(here, run, runs):
    done(run, runs / "vae", "--num", "70", "--out", "out")
    out = run("likelihood", str(runs / "vae"), "--num", "70", "--num-samples", "10").out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert float(lines["elbo"][1]) == pytest.approx(column("out", "elbo").mean(), abs=0.01)
    assert float(lines["iwae10"][1]) == pytest.approx(
        column("out", "log_likelihood").mean(), abs=0.01
    )


def test_rows_do_not_depend_on_how_many_follow(here, run, runs):
    done(run, runs / "vae", "--num", "5", "--out", "few")
    done(run, runs / "vae", "--num", "70", "--out", "many")
    few, many = table("few"), table("many")
    for name in ("mse", "elbo", "log_likelihood"):
        pairs = [(float(a[name]), float(b[name])) for a, b in zip(few, many, strict=False)]
        assert len(pairs) == 5
        assert all(a == pytest.approx(b, rel=1e-4) for a, b in pairs)


def test_the_sheet_has_originals_above_their_reconstructions(here, run, runs, digits):
    done(run, runs / "vae", "--num", "20", "--out", "out")
    rows = cells("out/sheet.png")
    originals, made = whole(digits[0][:16]), list(pictures("out").values())
    assert len(rows) == 4  # the third row is not full and left out
    for part in range(2):
        for i in range(8):
            assert np.array_equal(rows[2 * part][i], originals[8 * part + i])
            assert np.array_equal(rows[2 * part + 1][i], made[8 * part + i])


def test_the_anomalies_are_the_highest_scores_and_then_the_lowest(here, run, runs, digits):
    out = done(run, runs / "vae", "--num", "100", "--out", "out")
    order = column("out", "anomaly_score").argsort()
    rows = cells("out/anomalies.png")
    originals, made = whole(digits[0][:100]), list(pictures("out").values())
    for i, place in enumerate(order[::-1][:8]):
        assert np.array_equal(rows[0][i], originals[place])
        assert np.array_equal(rows[1][i], made[place])
    for i, place in enumerate(order[:8]):
        assert np.array_equal(rows[2][i], originals[place])
        assert np.array_equal(rows[3][i], made[place])
    named = [line.split()[0] for line in out.splitlines() if line.startswith("  0000")]
    assert named == [f"{place:06d}.png" for place in order[::-1][:5]]
    assert "compare with the scores of held-out images of the same kind" in out


def test_a_single_image_has_all_sheets_but_those_of_two(here, run, runs):
    out = done(run, runs / "vae", "--num", "1", "--out", "out")
    assert "interpolation" not in out
    assert sorted(p.name for p in Path("out").glob("*.png")) == [
        "anomalies.png", "sheet.png", "traversal.png"
    ]  # fmt: skip
    assert len(cells("out/anomalies.png")) == 2


def test_live_weights_make_other_images(here, run, runs):
    done(run, runs / "vae", "--num", "3", "--out", "a")
    done(run, runs / "vae", "--num", "3", "--raw", "--out", "b")
    assert not np.array_equal(pictures("a")["000000.png"], pictures("b")["000000.png"])


def test_without_a_folder_they_go_to_one_of_the_runs_name(here, run, runs):
    done(run, runs / "vae", "--num", "1")
    assert Path("reconstructions/vae/images/000000.png").is_file()


# -- a user's own images --------------------------------------------------------------------------


def test_a_folder_named_by_classes_gives_what_the_data_gives(here, run, runs, photos, digits):
    done(run, runs / "vae", "--num", "6", "--out", "held_out")
    done(run, runs / "vae", photos, "--out", "mine")
    theirs, mine = pictures("held_out"), pictures("mine")
    assert set(mine) == {f"{int(digits[1][i])}/{i}.png" for i in range(6)}
    for i in range(6):
        name = f"{int(digits[1][i])}/{i}.png"
        assert np.array_equal(mine[name], theirs[f"{i:06d}.png"])
    by_source = {row["source"]: row for row in table("mine")}
    assert {name: int(row["label"]) for name, row in by_source.items()} == {
        name: int(name[0]) for name in mine
    }
    assert [row["source"] for row in table("mine")] == sorted(by_source)


def test_a_file_needs_its_class(here, run, runs, photos):
    file = next(photos.rglob("0.png"))
    code, _, err = run("reconstruct", str(runs / "vae"), str(file))
    assert code == 2
    assert "nothing says of which one '0.png' is" in err
    assert "Expected --label L" in err
    label = file.parent.name
    done(run, runs / "vae", file, "--label", label, "--out", "out")
    assert table("out")[0]["label"] == label
    assert list(pictures("out")) == ["0.png"]


def test_another_label_gives_another_image(here, run, runs, photos):
    file = next(photos.rglob("0.png"))
    for label in ("1", "8"):
        done(run, runs / "vae", file, "--label", label, "--out", label)
    assert not np.array_equal(pictures("1")["0.png"], pictures("8")["0.png"])


def test_large_colour_images_become_what_the_model_takes(here, run, runs):
    Path("mine").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save("mine/a.png")
    out = done(run, runs / "denoising", "mine", "--out", "out")
    assert "1 image of mine, crop to 8x8, 1 channel" in out
    image = Rule((8, 8), channels=1).apply(torch.from_numpy(pixels).permute(2, 0, 1))
    expected = whole(imgsynth.load(runs / "denoising", trusted=("my_corruption",)).reconstruct(
        from_uint8(image)[None]
    ))[0]  # fmt: skip
    assert np.array_equal(pictures("out")["a.png"], expected)
    assert np.array_equal(cells("out/sheet.png")[0][0], image[0].numpy())


def test_two_files_of_one_stem_keep_both_names(here, run, runs):
    Path("mine").mkdir()
    for name in ("a.png", "a.bmp", "b.png"):
        Image.new("L", (8, 8), 100).save(f"mine/{name}")
    done(run, runs / "denoising", "mine", "--out", "out")
    assert list(pictures("out")) == ["a.bmp.png", "a.png.png", "b.png"]


def test_the_run_s_own_rule_makes_them(here, run, photos):
    options = ("--data", "ImageFolder", "--data.root", str(photos), "--data.size", "8")
    rule = ("--data.fit", "pad", "--data.background", "0", "--data.batch_size", "2")
    Path("vae.yaml").write_text(VAE)
    cache = ("--data.cache", "cache", "--images", "4", "--name", "padded")
    assert run("fit", "-c", "vae.yaml", *options, *rule, *cache).code == 0
    Image.new("L", (16, 4), 255).save("wide.png")
    label = sorted(p.name for p in photos.iterdir())[-1]
    out = done(run, "runs/padded", "wide.png", "--label", label, "--out", "out")
    assert "pad to 8x8" in out
    assert int(table("out")[0]["label"]) == len(list(photos.iterdir())) - 1  # by the class's name
    seen = cells("out/sheet.png")[0][0]
    assert seen[3:5].tolist() == [[255] * 8] * 2
    assert seen[:3].max() == seen[5:].max() == 0
    moved = photos.rename("elsewhere")  # the class is known by its number where the data is not
    shutil.rmtree("cache")
    done(run, "runs/padded", "wide.png", "--label", "0", "--out", "out")
    moved.rename("photos")


def test_binary_models_see_images_drawn_black_and_white(here, run, runs):
    Path("vae.yaml").write_text(DENOISING.replace("Gaussian, init_args: {sigma: 0.5}", "Bernoulli"))
    shutil.copy(runs.parent / "my_corruption.py", ".")
    options = ("--data.binarise", "true", "--images", "64", "--name", "binary")
    assert run("fit", "-c", "vae.yaml", *options).code == 0
    Image.new("L", (8, 8), 128).save("gray.png")
    out = done(run, "runs/binary", "gray.png", "--out", "out")
    assert "drawn black and white" in out
    assert "bpd" in table("out")[0]
    seen = cells("out/sheet.png")[0][0]
    assert set(seen.flat) == {0, 255}
    gray = done(run, "runs/binary", "gray.png", "--data.binarise", "false", "--out", "gray")
    assert "cross-entropies, no likelihoods" in gray
    assert "bpd" not in table("gray")[0]


def test_a_checkpoint_alone_reconstructs_a_file(here, run, runs, photos):
    newest = max((runs / "vae" / "checkpoints").iterdir())
    Path("alone").mkdir()
    shutil.copy(newest, "alone/x.ckpt")
    file = next(photos.rglob("0.png"))
    done(run, "alone/x.ckpt", file, "--label", "3", "--out", "out")
    assert len(table("out")) == 1


# -- restoring, and other methods -----------------------------------------------------------------


def test_corrupted_images_are_restored_and_always_the_same(here, run, runs, digits):
    out = done(run, runs / "denoising", "--corrupt", "--num", "70", "--out", "a")
    done(run, runs / "denoising", "--corrupt", "--num", "9", "--out", "b")
    rows = cells("a/sheet.png")
    originals = whole(digits[0][:8])
    method = imgsynth.load(runs / "denoising", trusted=("my_corruption",))
    for i in range(8):
        clean, corrupted, restored = (rows[line][i] for line in range(3))
        assert np.array_equal(clean, originals[i])
        assert set(corrupted[corrupted != clean]) <= {0}
        assert 0.05 < (corrupted != clean).mean() < 0.4
        given = from_uint8(torch.from_numpy(corrupted.copy()))[None, None]
        assert np.array_equal(restored, whole(method.reconstruct(given))[0])
    assert all(np.array_equal(x, y) for x, y in zip(rows[1], cells("b/sheet.png")[1], strict=True))
    assert column("a", "psnr_input")[:8] == pytest.approx([
        10 * np.log10(255**2 / ((rows[0][i].astype(float) - rows[1][i]) ** 2).mean())
        for i in range(8)
    ], rel=1e-4)  # fmt: skip
    assert "corrupted" in out


def test_each_image_is_corrupted_in_its_own_way(here, run, runs):
    Path("white").mkdir()
    for i in range(3):
        Image.new("L", (8, 8), 255).save(f"white/{i}.png")
    done(run, runs / "denoising", "white", "--corrupt", "--out", "out")
    first, second, third = cells("out/sheet.png")[1]
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)


def test_without_being_asked_nothing_is_corrupted(here, run, runs, digits):
    out = done(run, runs / "denoising", "--num", "8", "--out", "out")
    assert "--corrupt shows that" in out
    assert len(cells("out/sheet.png")) == 2
    assert "psnr_input" not in table("out")[0]


def test_a_method_without_likelihoods_names_the_largest_errors(here, run, digits):
    Path("codes.yaml").write_text(CODES)
    assert run("fit", "-c", "codes.yaml").code == 0
    out = done(run, "runs/codes", "--num", "30", "--out", "out")
    assert list(table("out")[0]) == ["place", "image", "label", "mse", "psnr"]
    assert "Most anomalous by mse" in out
    assert sorted(p.name for p in Path("out").glob("*.png")) == ["anomalies.png", "sheet.png"]
    worst = column("out", "mse").argmax()
    assert np.array_equal(cells("out/anomalies.png")[0][0], whole(digits[0][worst : worst + 1])[0])


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("vae nothing.png", "There is no image or folder at 'nothing.png'"),
        ("vae photo", "Did you mean photos?"),
        ("vae empty", "holds no images"),
        ("vae text.png --label 1", "text.png is not JPEG, PNG"),
        ("vae broken --label 1", "cut.png cannot be read as PNG"),
        ("vae photos --num 0", "--num must be at least 1, got 0"),
        ("vae --num many", "got 'many'"),
        ("vae --num-samples 0", "--num-samples must be at least 1, got 0"),
        ("vae --split tset", "Did you mean --split test?"),
        ("vae photos --split test", "IN and --split test both say which images"),
        ("vae --label 10", "--label 10: there is no such class"),
        ("vae photos --label ten", "The classes are 0, 1, 2"),
        ("denoising --label 1", "the model is unconditional"),
        ("denoising photos --label 1", "the model is unconditional"),
        ("vae --corrupt", "it has no corruption"),
        ("vae photos --out photos/out", "would lie among the images of 'photos'"),
        ("vae . --label 1", "would lie among the images of '.'"),
        ("vae made/images/0.png --out made", "would lie among the images"),
        ("vae photos more", "Unexpected 'more'"),
        ("vae --device tpu", "Expected auto, cpu, cuda"),
        ("vae --checkpoint first", "There is no checkpoint 'first'"),
        ("vae --out text.png", "text.png"),
        ("vae --nmu 3", "Did you mean --num?"),
    ],
)
def test_mistakes_are_told_in_three_lines(here, run, runs, photos, line, said):
    Path("empty").mkdir()
    Path("text.png").write_text("no image")
    Path("broken").mkdir()
    whole_file = next(photos.rglob("0.png")).read_bytes()
    Path("broken/cut.png").write_bytes(whole_file[:60])
    Path("made/images").mkdir(parents=True)
    Path("made/images/0.png").write_bytes(whole_file)
    name, *rest = line.split()
    code, _, err = run("reconstruct", str(runs / name), *rest)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) <= 3
    assert "Traceback" not in err


def test_the_same_call_may_be_repeated_but_another_not_mixed_in(here, run, runs, photos):
    call = [runs / "vae", "--out", "out", "--num"]
    done(run, *call, "4")
    done(run, *call, "4")
    done(run, *call, "8")
    code, _, err = run("reconstruct", *map(str, call), "4")
    assert code == 2
    assert "holds 4 images of another call, such as 000004.png" in err
    code, _, err = run("reconstruct", str(runs / "vae"), str(photos), "--out", "out")
    assert code == 2
    assert "holds 8 images of another call" in err


def test_the_second_place_may_come_after_options():
    words = ["run", "--num", "3", "--raw", "in", "--label=1", "--out", "x"]
    given = _parser().parse(_places_first(words, _parser()))
    assert (given.run, given.input, given.num, given.raw) == ("run", "in", "3", True)
    assert (given.label, given.out) == ("1", "x")
