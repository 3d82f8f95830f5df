from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imgsynth
from imgsynth.cli import main
from imgsynth.cli.sample import _columns
from imgsynth.images import to_uint8


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny):
    """The folder of a small run, conditional on ten classes."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # a step so large that averaged and live weights make other pixels
        assert main(["fit", "-c", "tiny.yaml", "--model.generator_optimizer.lr", "0.1"]) == 0
    return folder / "runs" / "tiny"


def read(folder):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(Path(folder).glob("0*.png"))}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_files_are_named_by_number_and_class_and_hold_what_python_gets(here, run, trained):
    code, out, _ = run("sample", str(trained), "--num", "100", "--out", "images")
    assert code == 0
    assert out == "Wrote 100 images and grid.png to images\n"
    files = read("images")
    expected = to_uint8(imgsynth.load(trained).sample(100))[:, 0].numpy()
    assert list(files) == [f"{i:06d}_label{i % 10}.png" for i in range(100)]
    assert np.array_equal(np.stack(list(files.values())), expected)
    assert all(image.dtype == np.uint8 and image.shape == (8, 8) for image in files.values())


def test_an_image_does_not_depend_on_how_many_are_asked_for(here, run, trained):
    run("sample", str(trained), "--num", "3", "--label", "3", "--out", "few")
    run("sample", str(trained), "--num", "70", "--label", "3", "--out", "many")
    few, many = read("few"), read("many")
    assert list(few) == [f"{i:06d}_label3.png" for i in range(3)]
    assert same(few, {name: many[name] for name in few})


def test_the_seed_and_the_weights_change_the_images(here, run, trained):
    for name, options in {"a": [], "b": [], "c": ["--seed", "1"], "d": ["--raw"]}.items():
        run("sample", str(trained), "--num", "4", "--out", name, *options)
    a, b, c, d = (read(name) for name in "abcd")
    assert same(a, b)
    assert not same(a, c)
    assert not same(a, d)
    raw = to_uint8(imgsynth.load(trained).sample(4, ema=False))[:, 0].numpy()
    assert np.array_equal(np.stack(list(d.values())), raw)


def test_the_grid_has_a_class_in_each_column(here, run, trained):
    run("sample", str(trained), "--num", "20", "--out", "images")
    grid = np.asarray(Image.open("images/grid.png"))
    images = list(read("images").values())
    scale = grid.shape[1] // 10 // 8
    cell = 8 * scale + 2
    for index in (0, 3, 13):
        row, column = divmod(index, 10)
        top, left = 2 + row * cell, 2 + column * cell
        shown = grid[top : top + 8 * scale : scale, left : left + 8 * scale : scale]
        assert np.array_equal(shown, images[index])


def test_a_checkpoint_is_as_good_as_its_run(here, run, trained):
    newest = max((trained / "checkpoints").iterdir())
    run("sample", str(trained), "--num", "2", "--out", "a")
    run("sample", str(newest), "--num", "2", "--out", "b")
    assert same(read("a"), read("b"))


def test_the_files_say_where_they_come_from(here, run, trained):
    run("sample", str(trained), "--num", "1", "--seed", "5", "--out", "images")
    text = Image.open("images/000000_label0.png").text
    assert text["Method"] == "imgsynth.methods.HingeGAN"
    assert (text["Images seen"], text["Seed"], text["Weights"]) == ("128", "5", "averaged")


def test_without_a_folder_they_go_to_one_of_the_runs_name(here, run, trained):
    assert run("sample", str(trained), "--num", "1").code == 0
    assert Path("samples/tiny/000000_label0.png").is_file()


def test_the_same_call_may_be_repeated_but_another_not_mixed_in(here, run, trained):
    call = ["sample", str(trained), "--out", "images", "--num"]
    assert run(*call, "4").code == 0
    assert run(*call, "4").code == 0
    assert run(*call, "8").code == 0
    code, _, err = run(*call, "4")
    assert code == 2
    assert "'images' holds 4 images of another call, such as 000004_label4.png" in err


def test_an_unconditional_model_has_no_labels(here, run, tiny):
    text = tiny.replace("width: 4, ", "width: 4, num_classes: 0, ")
    Path("unconditional.yaml").write_text(text)
    run("fit", "-c", "unconditional.yaml")
    assert run("sample", "runs/unconditional", "--num", "2", "--out", "images").code == 0
    assert list(read("images")) == ["000000.png", "000001.png"]
    code, _, err = run("sample", "runs/unconditional", "--label", "1")
    assert code == 2
    assert "the model is unconditional" in err


def test_a_package_that_only_a_checkpoint_names_must_be_trusted(here, run):
    Path("my_sample_package.py").write_text(
        "from imgsynth.methods import HingeGAN\n\nclass Mine(HingeGAN):\n    pass\n"
    )
    run("fit", "-c", "tiny.yaml", "--model", "my_sample_package.Mine")
    checkpoint = max(Path("runs/tiny/checkpoints").iterdir()).rename("alone.ckpt")
    call = ["sample", str(checkpoint), "--num", "1", "--out", "images"]
    code, _, err = run(*call)
    assert code == 2
    assert "my_sample_package" in err
    assert run(*call, "--trust", "my_sample_package").code == 0


def test_a_grid_has_about_ten_columns_a_multiple_of_the_classes():
    assert [_columns(n) for n in (0, 2, 3, 10, 20, 1000)] == [10, 10, 9, 10, 20, 10]
