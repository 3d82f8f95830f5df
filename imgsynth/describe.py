"""Objects that remember how they were made, as plain data.

A description is ``{"class_path": "package.Class", "init_args": {...}}``: what the command line's
configuration holds, what a checkpoint may hold (no pickle), and what :func:`build` turns back
into the object.
"""

import dataclasses
import hashlib
import importlib
import inspect
import json
import numbers
import sys
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, Self

from torch import nn

MARKER = "not_described"


class Described:
    """Base of classes whose instances remember their constructor arguments.

    Arguments are recorded in ``__new__``, so subclasses write an ordinary ``__init__``.

    Example:
        >>> class Net(Described, nn.Module):
        ...     def __init__(self, width: int = 8):
        ...         super().__init__()
        >>> describe(Net(16))["init_args"]
        {'width': 16}
    """

    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: D102, ANN401
        self = super().__new__(cls)
        inits = list(dict.fromkeys(getattr(c, "__init__", None) for c in cls.__mro__))
        try:
            arguments = _named(inits, args, kwargs)
        except TypeError:  # wrong arguments: __init__ raises the natural error
            arguments = {}
        # Lists and dicts are copied: the caller may go on changing its own.
        arguments = {k: copy(v) if isinstance(v, list | dict) else v for k, v in arguments.items()}
        object.__setattr__(self, "_arguments", arguments)
        return self


def _named(inits: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Name all arguments; positional ones that a class only passes on, by the next class."""
    bound = inspect.signature(inits[0]).bind_partial(None, *args, **kwargs)
    bound.apply_defaults()  # a default may change after a checkpoint was written
    arguments = dict(list(bound.arguments.items())[1:])
    passed: dict[inspect._ParameterKind, Any] = {
        parameter.kind: arguments.pop(parameter.name, None)
        for parameter in bound.signature.parameters.values()
        if parameter.kind in {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    }
    on_args = passed.get(inspect.Parameter.VAR_POSITIONAL) or ()
    on_kwargs = passed.get(inspect.Parameter.VAR_KEYWORD) or {}
    return arguments | (_named(inits[1:], on_args, on_kwargs) if on_args else on_kwargs)


def class_path(cls: type) -> str:
    """Return the shortest public path of a class: ``imgsynth.networks.MLPGenerator``."""
    path = f"{cls.__module__}.{cls.__qualname__}"
    package = cls.__module__.rpartition(".")[0]
    if package and getattr(sys.modules.get(package), cls.__name__, None) is cls:
        path = f"{package}.{cls.__qualname__}"
    return path


def describe(value: Any) -> Any:  # noqa: ANN401
    """Turn a value into plain data that JSON, YAML and ``weights_only`` loading accept.

    Numbers, strings, lists and mappings stay what they are; frozen dataclasses and
    :class:`Described` objects become ``{class_path, init_args}``; anything else becomes a marker
    ``{"not_described": "package.Class"}``, which :func:`build` refuses with the name of the
    argument to pass.
    """
    if value is None or isinstance(value, numbers.Real | str):
        return _plain(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if isinstance(value, Described):
        init_args = {k: describe(v) for k, v in value._arguments.items()}
        return {"class_path": class_path(type(value)), "init_args": init_args}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        init_args = {f.name: describe(getattr(value, f.name)) for f in fields if f.init}
        return {"class_path": class_path(type(value)), "init_args": init_args}
    return {MARKER: class_path(type(value))}


def _plain(value: Any) -> float | str | None:  # noqa: ANN401
    """Strip subclasses: in a checkpoint, NumPy's scalars would be pickled objects."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def hash_of(plain: Any) -> str:  # noqa: ANN401
    """Return eight hexadecimal digits, equal exactly for equal plain data.

    Example:
        >>> hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
        True
    """
    text = json.dumps(plain, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _find_class(path: str, trusted: tuple[str, ...]) -> type:
    module_name, _, name = path.rpartition(".")
    allowed = {"imgsynth", *(t.partition(".")[0] for t in trusted)}
    if path.partition(".")[0] not in allowed:
        raise ValueError(
            f"The description names the class {path!r}, which is not part of imgsynth; if you "
            f"trust the file, allow its package: trusted=({path.partition('.')[0]!r},) in Python, "
            f"--trust {path.partition('.')[0]} on the command line."
        )
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"The class {path!r} cannot be imported: {error}.") from error
    if not isinstance(found, type) or not (
        issubclass(found, nn.Module) or dataclasses.is_dataclass(found)
    ):
        raise ValueError(f"{path!r} is neither an nn.Module nor a dataclass; it is not built.")
    if found.__module__.partition(".")[0] not in allowed:  # merely imported there
        raise ValueError(f"{path!r} is really a class of {found.__module__}; it is not built.")
    return found


def build(
    description: Any,  # noqa: ANN401
    *,
    trusted: tuple[str, ...] = (),
    where: str = "",
    **overrides: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Make the object that a description describes.

    Args:
        description: What :func:`describe` returned.
        trusted: Packages other than imgsynth whose classes may be imported.
        where: The argument being built, for errors.
        overrides: Arguments of the outermost object to use instead of the described ones.

    Raises:
        ValueError: If a class is not trusted or cannot be imported, or if an argument was not
            describable and is not among ``overrides``.
    """
    if isinstance(description, list):
        return [build(v, trusted=trusted, where=where) for v in description]
    if not isinstance(description, dict):
        return description
    if MARKER in description:
        raise ValueError(
            f"The argument {where!r} was made of the class {description[MARKER]!r}, which does not "
            f"record how it was built; pass it: {where}=..."
        )
    if "class_path" not in description:
        return {k: build(v, trusted=trusted, where=k) for k, v in description.items()}
    cls = _find_class(description["class_path"], trusted)
    arguments = {
        k: build(v, trusted=trusted, where=k)
        for k, v in description.get("init_args", {}).items()
        if k not in overrides
    }
    return cls(**arguments, **overrides)
