"""Who may import whom, and what no file may do. The table here is the one that counts."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "imgsynth"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if "experiments" not in p.parts)

LEAVES = {"types", "images", "seeding", "describe", "folders", "ranks"}
EVERYTHING = {p.stem for p in PACKAGE.iterdir()} | {"methods.base"}
MAY_IMPORT = {
    "types": set(),
    "images": set(),
    "seeding": set(),
    "describe": set(),
    "folders": set(),
    "ranks": set(),
    "losses": LEAVES,
    "networks": LEAVES,
    "diffusion": LEAVES,
    "augment": LEAVES,
    "likelihoods": LEAVES | {"losses"},
    "optim": LEAVES,
    "ema": LEAVES,
    "metrics": LEAVES,
    "methods": LEAVES | {"losses", "likelihoods", "diffusion", "optim", "ema", "strategies"},
    "data": LEAVES | {"augment"},
    "callbacks": LEAVES | {"metrics", "augment", "methods.base", "loggers", "judging"},
    "loggers": LEAVES | {"metrics", "augment", "methods.base"},
    "strategies": set(),  # a method brings it about, so it knows none
    "loading": LEAVES | {"methods", "callbacks"},
    "judging": LEAVES | {"data", "methods", "networks", "optim", "callbacks", "loading", "metrics"},
    "cli": EVERYTHING,
    "__main__": EVERYTHING,
    "testing": EVERYTHING,
    "__init__": set(),  # it finds the public names when they are used
}
"""A part may always import itself; ``methods.base`` is that one file of ``methods``."""


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE.parent).as_posix()


def for_type_checkers(tree: ast.Module) -> set[ast.AST]:
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If)]
    return {
        inner
        for guard in guards
        if isinstance(guard.test, ast.Name) and guard.test.id == "TYPE_CHECKING"
        for statement in guard.body
        for inner in ast.walk(statement)
    }


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Yield each module a file imports, as ``imgsynth.part.module``, with its line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = for_type_checkers(tree) if path.name == "__init__.py" else set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: imports are absolute"
            if node.module == "imgsynth":
                yield from ((f"imgsynth.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield str(node.module), node.lineno


def calls(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def called(call: ast.Call) -> str:
    """Return ``a.b.c`` of a call ``a.b.c(...)``, as far as it is made of names."""
    return ast.unparse(call.func)


def keyword(call: ast.Call, name: str) -> object:
    for given in call.keywords:
        if given.arg == name:
            return given.value.value if isinstance(given.value, ast.Constant) else "an expression"
    return None


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_what_its_part_may(path):
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} has no row in the table of this test"
    for module, line in imported(path):
        package, _, rest = module.partition(".")
        if package != "imgsynth" or not rest:
            continue
        target = ".".join(rest.split(".")[:2])
        first = target.partition(".")[0]
        allowed = MAY_IMPORT[part] | {part}
        assert first in allowed or target in allowed or first == "__version__", (
            f"{name_of(path)}:{line}: {part} may not import {module}; "
            f"it may import {', '.join(sorted(allowed))}"
        )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_logger_of_wandb_imports_wandb(path):
    users = [line for module, line in imported(path) if module.partition(".")[0] == "wandb"]
    assert not users or part_of(path) == "loggers", f"{name_of(path)}:{users}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_runs_what_it_reads(path):
    forbidden = {"eval", "exec", "compile", "pickle.load", "pickle.loads", "pickle.Unpickler"}
    for call in calls(path):
        where = f"{name_of(path)}:{call.lineno}"
        name = called(call)
        assert name not in forbidden, f"{where}: {name}()"
        assert name not in {"yaml.load", "yaml.full_load", "yaml.unsafe_load"}, f"{where}: {name}()"
        assert keyword(call, "allow_pickle") in {None, False}, f"{where}: allow_pickle"
        assert keyword(call, "weights_only") in {None, True}, f"{where}: weights_only"
        reads = name == "torch.load" or keyword(call, "ckpt_path") is not None
        assert not reads or keyword(call, "weights_only"), f"{where}: weights_only=True is missing"
        if name in {"np.load", "numpy.load"}:
            assert keyword(call, "allow_pickle") is False, f"{where}: allow_pickle=False is missing"


@pytest.mark.parametrize("path", [p for p in FILES if part_of(p) == "methods"], ids=name_of)
def test_no_method_waits_for_the_device_or_prints_or_goes_around_lightning(path):
    for call in calls(path):
        last = called(call).rpartition(".")[2]
        assert last not in {"item", "cuda", "print", "backward"}, (
            f"{name_of(path)}:{call.lineno}: .{last}()"
        )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_a_drawer(path):
    assert path.stem not in {"utils", "util", "helpers", "misc", "common"}
