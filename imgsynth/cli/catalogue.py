"""What there is to choose from, read from the source: importing it would take ten seconds."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_BASES = {
    "Method",
    "AdversarialMethod",
    "OnePlayerMethod",
    "Likelihood",
    "ImageDataModule",
    "Optimizer",
    "Extractor",
}
_BASES |= {"ClassifierExtractor"}  # made of a file: --evaluate.weights
"""Classes to inherit from, or made in another way; not to choose."""


@dataclass(frozen=True)
class Role:
    """A kind of class that the command line takes.

    Attributes:
        folder: Where its classes are.
        ancestor: What all of them inherit.
        option: How one is given.
    """

    folder: str
    ancestor: str
    option: str


ROLES = {
    "methods": Role("methods", "Method", "--model"),
    "networks": Role("networks", "Module", "--model.generator"),
    "augmentations": Role("augment", "Module", "--model.augment"),
    "likelihoods": Role("likelihoods.py", "Likelihood", "--model.likelihood"),
    "optimizers": Role("optim.py", "Optimizer", "--model.generator_optimizer"),
    "schedules": Role("optim.py", "Schedule", "--model.generator_schedule"),
    "extractors": Role("metrics", "Extractor", "--evaluate.extractor"),
    "data": Role("data", "ImageDataModule", "--data"),
}


@dataclass(frozen=True)
class Parameter:
    """One constructor argument, as it is written.

    Attributes:
        name: Its name.
        annotation: Its type.
        default: Its default; None if it is required.
        text: What its class says about it.
    """

    name: str
    annotation: str
    default: str | None
    text: str


@dataclass(frozen=True)
class Entry:
    """One class, as it is written.

    Attributes:
        name: Its name.
        file: Where it is, relative to the package.
        bases: The names of what it inherits.
        summary: The first line of its docstring.
        text: Its further paragraphs, up to the arguments.
        parameters: Its own constructor arguments.
        forwards: Whether it takes its bases' arguments too.
        fixed: Those of them that it decides itself.
    """

    name: str
    file: str
    bases: tuple[str, ...]
    summary: str
    text: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    forwards: bool
    fixed: frozenset[str]


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Entry]:
    """Return all classes of the package by name; private ones, too, are ancestors."""
    entries: dict[str, Entry] = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        file = path.relative_to(_PACKAGE).as_posix()
        if not file.startswith(("cli/", "experiments/")):
            for entry in read(path, file):
                entries.setdefault(entry.name, entry)  # Gaussian: the likelihood, not the metric's
    return entries


def read(path: Path, file: str) -> Iterator[Entry]:
    """Yield the classes of a source file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield _entry(node, file)


def _paragraphs(documentation: str) -> tuple[str, ...]:
    """Return the paragraphs between the first line and the first section."""
    body = re.split(r"\n(?=[A-Z][a-z]+:\n)", documentation)[0].partition("\n")[2]
    return tuple(" ".join(part.split()) for part in body.split("\n\n") if part.strip())


def _entry(node: ast.ClassDef, file: str) -> Entry:
    functions = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    init = functions[0] if functions else None
    documentation = ast.get_docstring(node) or ""
    texts = _argument_texts(f"{documentation}\n{(ast.get_docstring(init) or '') if init else ''}")
    if init is not None:
        parameters = tuple(_arguments(init, texts))
        forwards, fixed = init.args.kwarg is not None, _given_to_base(init)
    else:
        is_dataclass = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
        parameters = tuple(_fields(node, texts)) if is_dataclass else ()
        forwards, fixed = True, frozenset()
    return Entry(
        name=node.name,
        file=file,
        bases=tuple(ast.unparse(base).rpartition(".")[2] for base in node.bases),
        summary=documentation.partition("\n")[0],
        text=_paragraphs(documentation),
        parameters=parameters,
        forwards=forwards,
        fixed=fixed,
    )


def _arguments(init: ast.FunctionDef, texts: dict[str, str]) -> Iterator[Parameter]:
    positional = [*init.args.posonlyargs, *init.args.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(init.args.defaults))
    pairs = list(zip(positional, [*missing, *init.args.defaults], strict=True))[1:]
    pairs += zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    for argument, default in pairs:
        annotation = ast.unparse(argument.annotation) if argument.annotation else ""
        written = ast.unparse(default) if default is not None else None
        name = argument.arg
        yield Parameter(name, annotation.strip("'\""), written, texts.get(name, ""))


def _fields(node: ast.ClassDef, texts: dict[str, str]) -> Iterator[Parameter]:
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            written = ast.unparse(field.value) if field.value is not None else None
            name = field.target.id
            yield Parameter(name, ast.unparse(field.annotation), written, texts.get(name, ""))


def _given_to_base(init: ast.FunctionDef) -> frozenset[str]:
    """Return the arguments that a constructor passes on by name."""
    calls = [n for n in ast.walk(init) if isinstance(n, ast.Call)]
    to_base = [call for call in calls if ast.unparse(call.func) == "super().__init__"]
    return frozenset(keyword.arg for call in to_base for keyword in call.keywords if keyword.arg)


def _argument_texts(documentation: str) -> dict[str, str]:
    """Read the section ``Args`` of a docstring in Google's style."""
    texts: dict[str, str] = {}
    inside, name = False, ""
    for line in documentation.splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if indent == 0 and text:
            inside = text == "Args:"
        elif inside and indent == 4 and ":" in text:
            name, _, text = text.partition(":")
            name = name.partition(" ")[0]
            texts[name] = text.strip()
        elif inside and indent > 4:
            texts[name] = f"{texts.get(name, '')} {text}"
    return texts


def ancestors(name: str) -> list[str]:
    """Return all that a class inherits, itself first, as far as it is in the package."""
    found = [name]
    entry = catalogue().get(name)
    for base in entry.bases if entry is not None else ():
        found += [b for b in ancestors(base) if b not in found]
    return found


def parameters(name: str) -> dict[str, Parameter]:
    """Return the constructor arguments of a class, those it passes on to its bases included."""
    entry = catalogue().get(name)
    if entry is None:
        return {}
    own = {parameter.name: parameter for parameter in entry.parameters}
    if entry.forwards:
        for base in entry.bases:
            inherited = parameters(base).items()
            own |= {k: p for k, p in inherited if k not in own and k not in entry.fixed}
    return own


def choices(role: str) -> dict[str, Entry]:
    """Return the classes of a role by name; of networks and augmentations the exported ones."""
    kind = ROLES[role]
    chosen = {}
    for name, entry in catalogue().items():
        inside = entry.file == kind.folder or entry.file.startswith(f"{kind.folder}/")
        is_choice = name not in _BASES and not name.startswith("_")
        if inside and is_choice and kind.ancestor in ancestors(name):
            chosen[name] = entry
    return {name: entry for name, entry in chosen.items() if name in _exported(kind.folder, chosen)}


def _exported(folder: str, chosen: dict[str, Entry]) -> set[str]:
    path = _PACKAGE / folder / "__init__.py"
    if not path.is_file():
        return set(chosen)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def role_of(parameter: str, annotation: str = "") -> str:
    """Return the role of what an argument takes, by its name and type."""
    if parameter == "model":
        return "methods"
    if parameter == "data":
        return "data"
    if parameter in {"extractor", "likelihood"}:
        return f"{parameter}s"
    if "Optimizer" in annotation or parameter.endswith("optimizer"):
        return "optimizers"
    if "Schedule" in annotation or parameter.endswith("schedule"):
        return "schedules"
    return "augmentations" if parameter in {"augment", "corruption", "transforms"} else "networks"


def fitting(parameter: str, annotation: str = "") -> list[str]:
    """Return the names of the classes that an argument takes, the likely ones only.

    Example:
        >>> fitting("generator")[:1]
        ['DCGANGenerator']
    """
    names = list(choices(role_of(parameter, annotation)))
    named_so = [name for name in names if name.lower().endswith(parameter.lower())]
    return named_so or names


@lru_cache(maxsize=1)
def trainer() -> Entry | None:
    """Return Lightning's ``Trainer``, found without importing it."""
    spec = importlib.util.find_spec("lightning")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "pytorch" / "trainer" / "trainer.py"
    return next((entry for entry in read(path, "") if entry.name == "Trainer"), None)
