"""Recipes by name, from a checkout as from an installed wheel."""

from pathlib import Path

import imgsynth
from imgsynth.cli.errors import UsageError, did_you_mean, nearest


def folder() -> Path:
    """Return the folder of recipes: inside the wheel, or beside the package in a checkout."""
    package = Path(imgsynth.__file__).parent
    shipped = package / "experiments"
    return shipped if shipped.is_dir() else package.parent / "experiments"


def recipes() -> dict[str, Path]:
    """Return all recipes by name, such as ``gan/hinge_digits``.

    Those in ``base`` are layers to combine with others: trainers and the like.
    """
    root = folder()
    return {
        path.relative_to(root).with_suffix("").as_posix(): path for path in root.rglob("*.yaml")
    }


def claim(path: Path) -> str:
    """Return the first line of a recipe's header: what it claims."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            text = line.lstrip("#").strip()
            if text:
                return text if line.startswith("#") else ""
    return ""


def find(name: str) -> Path:
    """Return the configuration that ``name`` names: a file, else a recipe.

    Raises:
        UsageError: If there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = recipes()
    recipe = name.removesuffix(".yaml")
    if recipe in known:
        return known[recipe]
    last = {known_name.rpartition("/")[2]: known_name for known_name in known}
    meant = nearest(recipe, known, 2) or [last[n] for n in nearest(recipe, last, 2)]
    what = "is a folder, not a file" if path.is_dir() else "is neither a file nor a recipe"
    raise UsageError(
        f"-c {name}: {name!r} {what}.",
        "Expected a YAML file, or the name of a recipe as `imgsynth list recipes` shows them.",
        did_you_mean(f"-c {n}" for n in meant),
    )
