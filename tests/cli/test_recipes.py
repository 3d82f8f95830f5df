import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from imgsynth.cli import recipes
from imgsynth.cli.errors import UsageError
from imgsynth.cli.parser import parse

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder with two recipes in the place of ours."""
    folder = tmp_path / "shipped"
    (folder / "gan").mkdir(parents=True)
    (folder / "gan" / "one.yaml").write_text("# The claim.\n# More.\nseed: 1\n")
    (folder / "gan" / "two.yaml").write_text("seed: 2\n")
    monkeypatch.setattr(recipes, "folder", lambda: folder)
    return folder


def test_recipes_are_found_by_name_with_or_without_their_ending(shipped):
    assert recipes.find("gan/one") == recipes.find("gan/one.yaml") == shipped / "gan" / "one.yaml"


def test_a_file_goes_before_a_recipe(shipped, here):
    Path("gan").mkdir()
    Path("gan/one.yaml").write_text("seed: 3\n")
    assert recipes.find("gan/one.yaml") == Path("gan/one.yaml")


@pytest.mark.parametrize("name", ["gan/onee", "one", "gan/on"])
def test_an_unknown_recipe_is_answered_with_the_nearest(shipped, name):
    with pytest.raises(UsageError) as caught:
        recipes.find(name)
    assert caught.value.lines[-1] == "Did you mean -c gan/one?"


def test_the_claim_is_the_first_line_of_the_header(shipped):
    assert recipes.claim(shipped / "gan" / "one.yaml") == "The claim."
    assert recipes.claim(shipped / "gan" / "two.yaml") == ""


def test_the_list_shows_recipes_with_their_claims(shipped, run):
    assert "  gan/one  The claim.\n" in run("list", "recipes").out


@pytest.mark.parametrize("name", [n for n in recipes.recipes() if not n.startswith("base/")])
def test_every_recipe_of_ours_has_a_claim_and_is_complete(name):
    path = recipes.find(name)
    assert recipes.claim(path)
    config = parse([path], [])
    assert config["images"] is not None


@pytest.mark.slow
def test_the_wheel_holds_the_recipes_and_finds_them(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    for name in ("py.typed", "metrics/judges/digits.pt"):
        assert (tmp_path / "site" / "imgsynth" / name).is_file()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from imgsynth.cli.recipes import folder, recipes\n"
        "print(folder(), *sorted(recipes()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    found, *names = done.stdout.split()
    assert found == str(tmp_path / "site" / "imgsynth" / "experiments")
    assert names == sorted(recipes.recipes())
