"""jsonargparse's errors, put in the words of the command line.

Its messages are trees, indented: a key or a class, below it what is wrong with it, once for each
type that was tried. The innermost line is the cause; the lines above it say where.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from imgsynth.cli import catalogue
from imgsynth.cli.arguments import Options
from imgsynth.cli.errors import UsageError, did_you_mean, listing, nearest
from imgsynth.cli.recipes import holds

_KEY = re.compile(r'Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)')
_CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)':")
_GIVEN = re.compile(r"Given value: (?P<value>.*)")
_SCAFFOLD = re.compile(
    r"Does not validate against|Subtypes: |Errors:|Given value|Expected a path but|"
    r"Expected a <class 'NoneType'>|Subclass types expect|a class path \(str\)|a dict with|"
    r"a dict without"
)
_NO_OPTION = re.compile(
    r"(?:Option|Group '(?P<group>[^']+)' does not accept option|Key) '(?P<name>[^']+)'"
)
_TYPE = re.compile(r"Expected a <class '(?P<type>[^']+)'>|Expected a typing.Literal\[(?P<one>.+)\]")
_GOT = re.compile(r"Got value: (?P<value>.*)$")
_REQUIRED = re.compile(r"(?:following arguments are required: |[Kk]ey ')(?P<names>[\w., ]+)")
_NOT_IMPORTED = re.compile(
    r"No module named '[^']+'|module '[^']+' has no attribute '[^']+'|"
    r"cannot import name '[^']+' from '[^']+'"
)
_NO_CLASS = re.compile(
    r"dot import path|not correspond to a subclass|has no attribute|No module named|"
    r"cannot import name|"
    r"[Nn]ot a valid subclass|is not a subclass|[Uu]nable to import|is not accepted as class_path"
)
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "Sequence": "a list, such as '[a,b]'",
    "Mapping": "pairs, such as '{a: b}'",
    "tuple": "values in brackets, such as [3,32,32] or [a,b]",
}
_IN_YAML = "In YAML a class is written with class_path and, for its options, init_args."
_OURS = {
    "default_root_dir": "--out and --name",
    "enable_checkpointing": "--checkpoint.every and --checkpoint.keep",
    "use_distributed_sampler": "nothing: the data is shared among devices anyway",
    "barebones": "--trainer.fast_dev_run",
}


@dataclass
class Cause:
    """The innermost line of a message.

    Attributes:
        keys: The keys that lead to it.
        owner: Import path of the innermost class around it, if any.
        text: The line itself.
        depth: How far it is indented.
        given: The value it is about, if the message has it.
        others: What else was tried at the same place.
    """

    keys: tuple[str, ...]
    owner: str
    text: str
    depth: int
    given: str
    others: tuple[str, ...] = ()


def innermost(text: str) -> Cause:
    """Find the cause in a message of jsonargparse."""
    around: list[tuple[int, str, str]] = []  # indentation, key, class
    causes: list[Cause] = []
    given: dict[tuple[str, ...], str] = {}
    for line in text.splitlines():
        stripped = line.strip().removeprefix("- ")
        depth = len(line) - len(line.lstrip(" -"))
        around = [a for a in around if a[0] < depth] if stripped else around
        keys = tuple(key for _, key, _ in around if key)
        if match := _GIVEN.match(stripped):
            given[keys] = match["value"]
        if match := _KEY.match(stripped):
            around.append((depth, match["key"], ""))
            stripped, keys = match["rest"], (*keys, match["key"])
        elif match := _CLASS.match(stripped):
            around.append((depth, "", match["path"]))
            stripped = ""
        if stripped and not _SCAFFOLD.match(stripped):
            owner = next((path for _, _, path in reversed(around) if path), "")
            causes.append(Cause(keys, owner, stripped, depth, ""))
    if not causes:
        return Cause((), "", " ".join(text.split()), 0, "")
    deepest = max(causes, key=lambda cause: cause.depth)
    deepest.given = given.get(deepest.keys, "")
    deepest.others = tuple(c.text for c in causes if c.keys == deepest.keys)
    return deepest


def explain(
    error: Exception, options: Options, configs: dict[str, Any], known: Iterable[str]
) -> UsageError:
    """Turn an error of jsonargparse into one of ours.

    Args:
        error: What was raised.
        options: The options of the command line, to tell where a value came from.
        configs: The contents of the configurations, by file.
        known: The names of all options that do not depend on a choice of class.
    """
    cause = innermost(str(error))
    where = _Where(cause, options, configs, list(known))
    for pattern, explanation in (
        (_NO_OPTION, _unknown_option),
        (re.compile("unrecognized arguments: "), _unrecognised),
        (_REQUIRED, _missing),
        (_NO_CLASS, _unknown_class),
        (_TYPE, _wrong_type),
    ):
        if match := pattern.search(cause.text):
            return explanation(where, match)
    return UsageError(f"{where.option()}: {cause.text}" if cause.keys else cause.text)


@dataclass
class _Where:
    cause: Cause
    options: Options
    configs: dict[str, Any]
    known: list[str]

    def name(self, *more: str) -> str:
        """Return the dotted name of the option in question."""
        keys = ".".join([*self.cause.keys, *more]).split(".")
        return ".".join(key for key in keys if key not in {"init_args", "dict_kwargs"})

    def option(self, *more: str) -> str:
        """Return the option in question, and its file if it came from one."""
        name = self.name(*more)
        if any(_plain(given) == name for given, _ in self.options):
            return f"--{name}"
        files = [file for file, content in self.configs.items() if holds(content, name)]
        return f"--{name} (in {files[-1]})" if files else f"--{name}"

    def value(self) -> str:
        """Return the value in question."""
        if match := _GOT.search(self.cause.text):
            return match["value"]
        values = [value for name, value in self.options if _plain(name) == self.name()]
        return values[-1] if values else self.cause.given


def _plain(name: str) -> str:
    return name.replace(".init_args", "").replace(".class_path", "").rstrip("+")


def _unrecognised(where: _Where, match: re.Match[str]) -> UsageError:
    word = where.cause.text[match.end() :].split()[0]
    name = word.lstrip("-").partition("=")[0]
    if where.cause.owner:
        return _no_such_option(where, name)
    return _no_top_option(where, name)


def _unknown_option(where: _Where, match: re.Match[str]) -> UsageError:
    name = match["name"]
    group = match["group"]
    if not where.cause.owner:
        return _no_top_option(where, f"{group}.{name}" if group else name)
    return _no_such_option(where, f"{group}.{name}" if group else name)


def _no_top_option(where: _Where, name: str) -> UsageError:
    group, _, last = name.rpartition(".")
    group = group.partition(".")[0]
    if group == "trainer" and last in _OURS:
        return UsageError(
            f"{where.option(name)} follows from the run.", f"Expected {_OURS[last]} instead."
        )
    known = [k for k in where.known if k.startswith(f"{group}.")] if group else where.known
    known = known or where.known
    plain = [k for k in known if group or "." not in k]
    shown = [k.removeprefix(f"{group}.") for k in plain] if known is not where.known else plain
    return UsageError(
        f"There is no option {where.option(name)}.",
        f"Options{f' of --{group}' if known is not where.known else ''}: {listing(shown)}.",
        did_you_mean(f"--{k}" for k in nearest(name, known) or nearest(name, where.known)),
    )


def _no_such_option(where: _Where, name: str) -> UsageError:
    name, dot, rest = name.partition(".")
    path = where.cause.owner
    owner = path.rpartition(".")[2]
    parameter = where.name().rpartition(".")[2]
    if owner in {"Module", "Method", "ImageDataModule", "Optimizer"}:
        return UsageError(
            f"{where.option(name)}: --{where.name()} is no class that has options.",
            f"Expected a class: --{where.name()} {' or '.join(catalogue.fitting(parameter)[:2])}.",
            _IN_YAML,
        )
    known = _parameters(path)
    close = [where.name(f"{n}{dot}{rest}") for n in nearest(name, known)]
    misplaced = name in catalogue.catalogue() or nearest(name, ("init_args", "class_path"))
    further = _further(known)
    elsewhere = [where.name(n) for match in nearest(name, further) for n in further[match][:2]]
    return UsageError(
        f"{where.option(name)}: {owner} has no option {name!r}.",
        f"Options of {owner}: {listing(known)}.",
        _IN_YAML if misplaced else did_you_mean(f"--{n}" for n in close or elsewhere),
    )


def _further(known: dict[str, str]) -> dict[str, list[str]]:
    """Return the options of the classes that a class takes, with where they belong."""
    further: dict[str, list[str]] = {}
    parts = ("generator", "discriminator", "optimizer", "schedule")
    for component, annotation in known.items():
        if component.endswith(parts):
            for choice in catalogue.fitting(component, annotation):
                for name in catalogue.parameters(choice):
                    places = further.setdefault(name, [])
                    if f"{component}.{name}" not in places:
                        places.append(f"{component}.{name}")
    return further


def _parameters(path: str) -> dict[str, str]:
    """Return the options of a class and their types."""
    known = catalogue.parameters(path.rpartition(".")[2])
    if known and path.startswith("imgsynth."):
        return {name: parameter.annotation for name, parameter in known.items()}
    from imgsynth.cli.parser import defaults_of

    return dict.fromkeys([*defaults_of(import_class(path))], "")


def import_class(path: str) -> Any:  # noqa: ANN401
    """Import what an import path names; it was found before."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _missing(where: _Where, match: re.Match[str]) -> UsageError:
    names = [name for name in match["names"].replace(",", " ").split() if name != "and"]
    owner = where.cause.owner.rpartition(".")[2] or "imgsynth fit"
    options = [f"--{where.name(name)}" for name in names]
    if not set(names) <= {"generator", "discriminator", "model", "data"}:
        hint = f"`imgsynth help {owner}` shows the options of {owner}."
        return UsageError(f"{owner} needs {' and '.join(options)}.", hint)
    pairs = zip(options, names, strict=True)
    examples = [f"{option} {catalogue.fitting(name)[0]}" for option, name in pairs]
    return UsageError(
        f"{owner} needs {' and '.join(options)}.", f"For example {' '.join(examples)}."
    )


def _unknown_class(where: _Where, match: re.Match[str]) -> UsageError:
    value = where.value()
    parameter = where.name().rpartition(".")[2]
    choices = catalogue.fitting(parameter)
    if value.startswith("["):  # of a list, the first that is not known
        listed = re.findall(r"[\w.]+", value)
        value = next((v for v in listed if v.rpartition(".")[2] not in choices), value)
    all_of_role = list(catalogue.choices(catalogue.role_of(parameter)))
    last = value.rpartition(".")[2]
    meant = nearest(last, choices) or nearest(last, all_of_role)
    texts = " ".join((where.cause.text, *where.cause.others))
    if found := _NOT_IMPORTED.search(texts):
        wrong = f"{value!r} cannot be imported ({found[0]})"
    elif last in catalogue.catalogue() or "subclass" in texts:
        wrong = f"{value!r} is of another kind"
    else:
        wrong = f"there is no class {value!r}"
    return UsageError(
        f"{where.option()}: {wrong}.",
        f"Expected {listing(choices)}, or a class of your own as my_package.MyClass.",
        did_you_mean(f"--{where.name()} {name}" for name in meant if name != last),
    )


def _wrong_type(where: _Where, match: re.Match[str]) -> UsageError:
    tried = [m for text in where.cause.others if (m := _TYPE.search(text))] or [match]
    names = [(m["type"] or "").rpartition(".")[2] for m in tried]
    types = [m["one"] or _TYPES.get(name, name) for m, name in zip(tried, names, strict=True)]
    wanted = " or ".join(dict.fromkeys(types))
    return UsageError(f"{where.option()} expects {wanted}, got {where.value()!r}.")
