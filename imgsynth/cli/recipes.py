"""Recipes by name, from a checkout as from an installed wheel."""

from pathlib import Path
from typing import Any

import yaml

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
    last = [(known_name.rpartition("/")[2], known_name) for known_name in known]
    close = nearest(recipe.rpartition("/")[2], [name for name, _ in last])
    meant = [known_name for name, known_name in last if name in close][:2]
    what = "is a folder, not a file" if path.is_dir() else "is neither a file nor a recipe"
    raise UsageError(
        f"-c {name}: {name!r} {what}.",
        "Expected a YAML file, or the name of a recipe as `imgsynth list recipes` shows them.",
        did_you_mean(f"-c {n}" for n in meant),
    )


def read(path: Path) -> dict[str, Any]:
    """Read a configuration, untyped.

    Raises:
        UsageError: If it is no YAML, or no mapping of options to values.
    """
    expected = "Expected YAML with options and values, such as `seed: 1`."
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"-c {path}: the file is no text (UTF-8).", expected) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark is not None else ""
        raise UsageError(f"-c {path}: the file is no valid YAML{place}.", expected) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        what = "empty" if content is None else "no mapping"
        raise UsageError(f"-c {path}: the file is {what}.", expected)
    for group in ("trainer", "samples", "evaluate", "checkpoint", "wandb"):
        if not isinstance(content.get(group, {}), dict):
            raise UsageError(
                f"-c {path}: {group} must hold options, got {content[group]!r}.",
                f"Expected `{group}:` and its options below, indented.",
            )
    return content


def holds(content: Any, name: str) -> bool:  # noqa: ANN401
    """Say whether a configuration has the option ``a.b.c``."""
    if not name:
        return True
    if not isinstance(content, dict):
        return False
    inner = content.get("init_args")
    if isinstance(inner, dict) and holds(inner, name):
        return True
    first, _, rest = name.partition(".")
    return first in content and holds(content[first], rest)
