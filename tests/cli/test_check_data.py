"""``imgsynth check-data``: what it says, writes and returns."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from imgsynth.cli.check_data import check_data
from imgsynth.cli.errors import UsageError
from imgsynth.data import ImageFolder

rng = np.random.default_rng(0)
Check = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def _the_same_noise_whatever_ran_before() -> None:
    rng.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture
def check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Check:
    """Runs the command in an empty directory; returns the exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def check(*argv: str) -> tuple[int, str]:
        capsys.readouterr()
        code = check_data(list(argv))
        return code, capsys.readouterr().out

    return check


def save(name: str, height: int = 8, width: int = 8, bands: int = 3) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (height, width, bands), dtype=np.uint8)
    Image.fromarray(pixels if bands > 1 else pixels[..., 0]).save(path)
    return path


def squeezed(text: str) -> str:
    return " ".join(text.split())


def good() -> None:
    for name in ("train/cat/1", "train/cat/2", "train/dog/1", "test/cat/1", "test/dog/1"):
        save(f"photos/{name}.png")


def bad() -> None:
    good()
    shutil.copy("photos/train/cat/1.png", "photos/test/cat/leak.png")
    shutil.copy("photos/train/cat/2.png", "photos/train/dog/wrong.png")
    save("photos/train/cat/gray.png", 16, 8, 1)
    Path("photos/train/cat/empty.png").write_bytes(b"")


def test_a_good_folder_has_nothing_to_mend(check: Check) -> None:
    good()
    code, out = check("photos", "--size", "4")
    assert code == 0
    assert squeezed(out) == squeezed("""
        photos: 5 images

          splits    train 3, test 2
          classes   2, the largest 1.5 times the smallest: cat 3, dog 2
          size      all 8x8 (height x width)
          format    PNG 5
          pixels    3 channels 5; 8 bits 5; stored as RGB 5
          rule      crop to 4x4; cuts nothing away

        to load it: --data ImageFolder --data.root photos --data.size 4
        contact sheet: check-photos.png
        verdict: nothing to mend.
    """)
    with Image.open("check-photos.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.mode == "RGB"


def test_what_needs_attention_is_named_and_the_exit_code_is_1(check: Check) -> None:
    bad()
    code, out = check("photos", "--sheet", "none")
    assert code == 1
    wanted = [
        "photos: 9 images",
        "needs attention",
        "1 image in more than one split: a LEAK.",
        "test/cat/leak.png (test) = train/cat/1.png (train) same bytes",
        "1 image in more than one CLASS.",
        "train/cat/2.png (cat) = train/dog/wrong.png (dog) same bytes",
        "1 image cannot be read.",
        "train/cat/empty.png is empty (0 bytes)",
        "Images have 2 sizes; say which all get.",
        "Images have 1 and 3 channels; say how many all get.",
        "verdict: 5 things need attention.",
    ]
    lines = [squeezed(line) for line in out.splitlines()]
    assert [line for line in lines if line in wanted] == wanted
    assert not list(Path().glob("*.png"))


def test_the_command_that_is_proposed_loads_the_folder(check: Check) -> None:
    bad()
    out = check("photos", "--sheet", "none", "--json")[1]
    words = shlex.split(json.loads(out)["command"])
    assert words[:2] == ["--data", "ImageFolder"]
    names = [word.removeprefix("--data.") for word in words[2::2]]
    options: dict[str, Any] = {
        name: yaml.safe_load(value) for name, value in zip(names, words[3::2], strict=True)
    }
    assert options == {"root": "photos", "size": 8, "channels": 3, "unusable": "skip"}
    data = ImageFolder(**options)
    with pytest.warns(UserWarning, match="left out"):
        data.prepare_data()
    data.setup("fit")
    assert data.num_images("train") == 5


def test_options_that_were_given_are_part_of_the_command(check: Check) -> None:
    save("my photos/a/1.png")
    save("my photos/b/1.png")
    options = ["--size", "[4,6]", "--fit", "pad", "--background", "0", "--class-depth", "0"]
    code, out = check("my photos", "--bits=8", "--sheet", "none", *options)
    assert code == 0
    assert (
        "--data ImageFolder --data.root 'my photos' --data.size '[4, 6]' --data.fit pad "
        "--data.bits 8 --data.background 0 --data.class_depth 0\n"
    ) in out
    assert "classes" not in out


@pytest.mark.parametrize("size", ["[4,6]", "4,6", "4x6", "[4, 6]"])
def test_the_size_may_have_two_sides(check: Check, size: str) -> None:
    save("photos/a.png")
    rule = json.loads(check("photos", "--size", size, "--sheet", "none", "--json")[1])["rule"]
    assert rule["size"] == [4, 6]


def test_dashes_and_underscores_are_the_same(check: Check) -> None:
    for name in ("a/x/1", "a/y/1", "b/x/1"):
        save(f"photos/{name}.png")
    first = check("photos", "--class-depth=2", "--test-fraction", "0.3", "--sheet", "none")
    second = check("photos", "--class_depth=2", "--test_fraction", "0.3", "--sheet", "none")
    assert first == second
    assert "3, all alike: a/x 1, a/y 1, b/x 1" in check("photos", "--class-depth=2")[1]


def test_the_json_holds_all_that_was_found(check: Check) -> None:
    bad()
    code, out = check("photos", "--size", "8", "--json")
    found = json.loads(out)
    assert code == 1
    assert found["good"] is False
    assert (found["num_images"], found["num_usable"]) == (9, 8)
    assert found["splits"] == {"train": 6, "test": 3}
    assert found["classes"]["dog"] == {"train": 2, "test": 1}
    assert found["broken"] == {"train/cat/empty.png": "is empty (0 bytes)"}
    assert [group["files"] for group in found["duplicates"]] == [
        ["test/cat/leak.png", "train/cat/1.png"], ["train/cat/2.png", "train/dog/wrong.png"],
    ]  # fmt: skip
    kinds = [finding["kind"] for finding in found["findings"]]
    assert kinds == ["leak", "conflict", "broken", "channels"]
    assert found["effect"]["most_removed"] == 0.5
    assert found["effect"]["most_removed_file"] == "train/cat/gray.png"
    assert found["sheet"] == "check-photos.png"
    assert Path("check-photos.png").is_file()


def test_problems_of_organisation_are_findings(check: Check) -> None:
    save("photos/a.png")
    save("photos/cat/b.png")
    code, out = check("photos", "--sheet", "none")
    assert code == 1
    assert "photos holds images both directly and in folders" in out
    assert "to load it" not in out
    assert check("photos", "--class_depth", "0", "--sheet", "none")[0] == 0
    Path("table.csv").write_text("file,label\na.png,cat\n")
    code, out = check("photos", "--table", "table.csv", "--sheet", "none")
    assert code == 1
    assert "'cat/b.png'" in out
    assert check("photos", "--table", "table.csv", "--allow-unlisted", "--sheet", "none")[0] == 0


def test_splits_and_classes_may_be_said(check: Check) -> None:
    good()
    options = ["--split_by", "{train: train, test: test}", "--class_names", "[dog, cat]"]
    code, out = check("photos", "--size", "4", "--sheet", "none", *options)
    assert code == 0
    assert "splits    train 3, test 2" in out
    assert "dog 2, cat 3" in out
    assert '--data.class_names \'["dog", "cat"]\'' in out


def test_a_folder_of_broken_files_has_no_sheet_and_no_command(check: Check) -> None:
    Path("photos").mkdir()
    Path("photos/a.png").write_bytes(b"")
    code, out = check("photos")
    assert code == 1
    assert "1 image cannot be read." in out
    assert "to load it" not in out
    assert "contact sheet" not in out


def test_long_lists_are_cut_to_a_screen(check: Check) -> None:
    for i in range(30):
        save(f"photos/{i:02}.png")
        shutil.copy(f"photos/{i:02}.png", f"photos/{i:02}-again.png")
        Path(f"photos/{i:02}-broken.png").write_bytes(b"")
    code, out = check("photos", "--sheet", "none")
    assert code == 1
    assert out.count("is empty (0 bytes)") == 9
    assert "    ... and 21 more (--json names all)\n" in out
    assert out.count("same bytes") == 9
    assert len(out.splitlines()) == 36


def test_with_many_kinds_of_findings_each_gets_fewer_lines(check: Check) -> None:
    good()
    for i in range(30):
        save(f"photos/train/cat/{i:02}.png")
        shutil.copy(f"photos/train/cat/{i:02}.png", f"photos/test/cat/{i:02}.png")
        Path(f"photos/train/cat/{i:02}-broken.png").write_bytes(b"")
        save(f"photos/train/dog/{i:02}-small.png", 3, 9, 3)
    shutil.copy("photos/train/cat/1.png", "photos/train/cat/again.png")
    out = check("photos", "--size", "4", "--fit", "cut", "--sheet", "none")[1]
    assert out.count("(test) = ") == 3
    assert out.count("is empty (0 bytes)") == 4
    assert out.count("smaller than the") == 4
    assert out.count("again.png") == 1
    assert len(out.splitlines()) == 36


def test_many_classes_are_told_by_the_largest_and_the_smallest(check: Check) -> None:
    for label in range(12):
        for i in range(1 + label):
            save(f"photos/{label}/{i}.png")
    out = check("photos", "--sheet", "none")[1]
    assert (
        "12, the largest 12.0 times the smallest: 11 12, 10 11, 9 10 ... 2 3, 1 2, 0 1"
    ) in squeezed(out)


def test_a_name_that_is_no_text_can_be_printed(check: Check) -> None:
    save("photos/a.png")
    try:
        shutil.copy(b"photos/a.png", b"photos/b\xff.png")
    except OSError:
        pytest.skip("this file system has text for names")
    code, out = check("photos")
    assert code == 0
    assert "a.png = b�.png  same bytes" in out


# -- mistakes --------------------------------------------------------------------------------------

MISTAKES = {
    "photo --size 8": "The folder 'photo' does not exist.",
    "photos/a.png": "The folder 'photos/a.png' is a file.",
    "photos --siz 8": "imgsynth check-data has no option --siz.",
    "photos --size eight": "--size expects whole numbers, got 'eight'.",
    "photos --size [1,2,3]": "--size expects whole numbers, got '[1,2,3]'.",
    "photos --class-depth two": "--class_depth expects a whole number, got 'two'.",
    "photos --fit shrink": "--fit: invalid choice",
    "photos --class-names cat": "--class_names got 'cat'.",
    "photos --class-names [": "--class_names got '['.",
    "photos --split-by test.txt": "--split_by got 'test.txt'.",
    "photos --split-by {test:x}": "--split_by got '{test:x}'.",
    "photos --sheet a.jpg": "--sheet 'a.jpg': the sheet is a PNG file.",
    "photos --sheet photos/sheet.png": "would lie among the images",
    "photos more": "Unexpected 'more'.",
    "": "The following arguments are required: PATH",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_told_before_anything_heavy_is_loaded(
    check: Check, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    save("photos/a.png")
    monkeypatch.setitem(sys.modules, "imgsynth.data", None)  # importing it would fail
    with pytest.raises(UsageError) as caught:
        check(*line.split())
    assert MISTAKES[line] in str(caught.value)
    assert caught.value.lines[1:] or "whole number" in str(caught.value)


def test_a_similar_folder_is_proposed(check: Check) -> None:
    save("data/photos/a.png")
    with pytest.raises(UsageError) as caught:
        check("data/photso")
    assert caught.value.lines[2] == "Did you mean data/photos?"


def test_loading_the_command_does_not_load_torch() -> None:
    code = "import sys, imgsynth.cli.check_data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("line", "error", "match"),
    [("photos --fit pad", ValueError, "needs a size"),
     ("photos --size 0", ValueError, "at least 1"),
     ("photos --test-fraction 2", ValueError, "below 1"),
     ("photos --table t.csv", FileNotFoundError, "There is no table"),
     ("empty", ValueError, "holds no images")],
)  # fmt: skip
def test_other_mistakes_are_those_of_imagefolder(
    check: Check, line: str, error: type[Exception], match: str
) -> None:
    save("photos/a.png")
    Path("empty").mkdir()
    with pytest.raises(error, match=match):
        check(*line.split())


def test_a_sheet_among_the_images_is_refused(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    save("photos/a.png")
    monkeypatch.chdir("photos")
    with pytest.raises(UsageError, match=r"'mine\.png' would lie among the images"):
        check(".", "--sheet", "mine.png")
    assert "contact sheet: ../sheets/a.png" in check(".", "--sheet", "../sheets/a.png")[1]
    assert Path("../sheets/a.png").is_file()


def test_a_sheet_that_cannot_be_written_does_not_cost_the_report(
    check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    save("photos/a.png")
    Path("file").write_text("x")
    with pytest.raises(OSError, match="file"):
        check("photos", "--sheet", "file/sheet.png")
    out = capsys.readouterr().out
    assert "verdict: nothing to mend." in out
    assert "contact sheet" not in out


def test_broken_files_that_are_to_be_skipped_need_no_attention(check: Check) -> None:
    save("photos/a.png")
    Path("photos/z.png").write_bytes(b"")
    assert check("photos", "--sheet", "none")[0] == 1
    code, out = check(
        *("photos", "--sheet", "none", "--unusable", "skip", "--interpolation", "bicubic")
    )
    assert code == 0
    assert "z.png is empty (0 bytes)" in squeezed(out)


def test_photographs_in_formats_that_are_not_read_are_not_passed_over(check: Check) -> None:
    save("photos/a.png")
    for name in ("b.HEIC", "c.heic", "notes.txt"):
        Path("photos", name).write_bytes(b"x")
    code, out = check("photos", "--sheet", "none")
    assert code == 1
    assert "3 other files (.heic 2, .txt 1)" in out
    assert "Formats that are not read: .heic 2; convert them." in out


def test_the_sheet_of_the_working_directory_lies_beside_it(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("photos/a.png")
    monkeypatch.chdir("photos")
    assert check(".")[0] == 0
    assert Path("../check-photos.png").is_file()


def test_images_of_many_channels_have_a_sheet_of_the_first_three(check: Check) -> None:
    Path("photos").mkdir()
    np.save("photos/a.npy", rng.integers(0, 256, (8, 8, 5), dtype=np.uint8))
    code, out = check("photos", "--size", "4")
    assert code == 0
    assert "contact sheet: check-photos.png" in out
