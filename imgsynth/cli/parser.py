"""Options and layered configurations, typed from signatures.

Later configurations win over earlier ones, and options over configurations. Choosing another
class keeps what was given explicitly and fits the new class; nobody's defaults are carried over:
``--model.generator_optimizer AdamW`` has AdamW's weight decay, not that of the default Adam.
"""

import argparse
import inspect
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from lightning.pytorch import Trainer

import imgsynth.augment
import imgsynth.metrics
import imgsynth.networks  # noqa: F401  (short names are those of imported classes)
from imgsynth.callbacks import Checkpoint, Evaluate, Samples
from imgsynth.cli import catalogue, recipes, runs
from imgsynth.cli.arguments import Options
from imgsynth.cli.errors import UsageError
from imgsynth.cli.explain import explain, import_class
from imgsynth.data import ImageDataModule
from imgsynth.describe import class_path
from imgsynth.loggers import WandB
from imgsynth.methods import Method
from imgsynth.types import Count

Config = dict[str, Any]
"""A configuration as plain data; classes are ``{class_path, init_args}``."""

_OURS = {"default_root_dir", "enable_checkpointing", "use_distributed_sampler", "barebones"}
"""Arguments of the Trainer that follow from the run."""

_FILLED = ("image_shape", "num_classes")
"""Arguments of a model's parts that are filled from the data where they are None."""


# Frozen dataclasses (optimisers, schedules) may be swapped for their subclasses.
set_parsing_settings(subclasses_enabled=["is_pure_dataclass"])


def build_parser() -> ArgumentParser:
    """Make the parser of everything that describes a run."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, default_env=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--images", type=Count | None, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int | None, default=None)
    parser.add_subclass_arguments(Method, "model", required=False, fail_untyped=False)
    parser.add_subclass_arguments(ImageDataModule, "data", required=False, fail_untyped=False)
    parser.add_class_arguments(
        Trainer, "trainer", skip=_OURS, fail_untyped=False, instantiate=False
    )
    parser.add_class_arguments(Samples, "samples", instantiate=False)
    parser.add_class_arguments(Evaluate, "evaluate", instantiate=False)
    parser.add_class_arguments(Checkpoint, "checkpoint", instantiate=False)
    parser.add_class_arguments(WandB, "wandb", skip={"folder", "config"}, instantiate=False)
    return parser


def parse(configs: list[Path], options: Options) -> Config:
    """Read configurations and options, and complete them with the defaults.

    Args:
        configs: YAML files, later ones winning.
        options: Options by name, which win over the files; their order does not matter.

    Returns:
        The whole configuration. What is filled from the data is None.

    Raises:
        UsageError: If something is wrong; it says what, and what was probably meant.
    """
    parser = build_parser()
    explicit = _explicit(parser, configs, options)
    if configs and options and not runs.is_helper():
        _say_what_is_kept(_explicit(parser, configs, []), explicit)
    for name in ("model", "data"):
        if not isinstance(explicit.get(name), dict):
            choices = " or ".join(list(catalogue.choices(catalogue.role_of(name)))[:2])
            raise UsageError(
                f"There is no --{name}.",
                f"Expected -c RECIPE, or --{name} followed by a class such as {choices}.",
                "`imgsynth list` shows recipes and classes.",
            )
    defaults = parser.get_defaults().as_dict()
    config: Config = {}
    for name, default in defaults.items():
        given = explicit.get(name, default)
        if name in {"model", "data"}:
            config[name] = _complete(given)
        elif isinstance(default, dict):
            config[name] = {**default, **{k: _complete(v) for k, v in (given or {}).items()}}
        elif name != "config":
            config[name] = given
    return config


def _explicit(parser: ArgumentParser, configs: list[Path], options: Options) -> Config:
    """Parse what was given, without defaults."""
    # A class comes before its own options, whatever the order on the command line.
    ordered = sorted(options, key=lambda option: option[0].count("."))
    argv = [f"--config={path}" for path in configs]
    argv += [f"--{name}={value}" for name, value in ordered]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            parsed: Config = parser.parse_args(argv, defaults=False).as_dict()
    except (argparse.ArgumentError, TypeError, KeyError, ValueError) as error:
        contents = {str(path): recipes.read(path) for path in configs}
        raise explain(error, options, contents, known_options(parser)) from error
    parsed.pop("config", None)
    return parsed


def known_options(parser: ArgumentParser) -> list[str]:
    """Return the names of all options that do not depend on a choice of class."""
    names = [name for action in parser._actions for name in action.option_strings]
    known = [name.lstrip("-") for name in names if name.startswith("--")]
    return [name for name in known if not name.endswith(("help", "+"))]


@lru_cache(maxsize=256)
def _defaults(cls: type) -> Config:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "it", fail_untyped=False, instantiate=False)
    required = {a.dest.partition(".")[2] for a in parser._actions if a.required}
    defaults = parser.get_defaults().as_dict()
    values = defaults.get("it", {})
    return {name: None if name in required else value for name, value in values.items()}


def defaults_of(cls: type) -> Config:
    """Return the constructor arguments of a class with their defaults, as plain data.

    Default instances (optimisers and the like) are ``{class_path, init_args}``; required
    arguments are None.
    """
    return dict(_defaults(cls))


def _is_class(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, dict) and isinstance(value.get("class_path"), str)


def _complete(value: Any, default: Any = None) -> Any:  # noqa: ANN401
    """Add the defaults of each class to what was given of it, and write its public path.

    Args:
        value: What was given, or a default.
        default: The default in its place: its arguments count if it is of the same class.
    """
    if isinstance(value, list | tuple):
        return type(value)(_complete(v) for v in value)
    if not _is_class(value):
        return {k: _complete(v) for k, v in value.items()} if isinstance(value, dict) else value
    cls = import_class(value["class_path"])
    path = class_path(cls)
    defaults = defaults_of(cls)
    if _is_class(default) and class_path(import_class(default["class_path"])) == path:
        defaults |= default.get("init_args", {})
    given = value.get("init_args") or {}
    _require_types(cls, given)
    arguments = {k: _complete(given.get(k, v), v) for k, v in defaults.items()}
    arguments |= {k: _complete(v) for k, v in given.items() if k not in arguments}
    return {"class_path": path, "init_args": arguments}


def _require_types(cls: type, given: Config) -> None:
    """Refuse a value for an argument that a class takes from its base without the base's type."""
    own = inspect.signature(cls).parameters
    for name in given:
        if name not in own or own[name].annotation is not inspect.Parameter.empty:
            continue
        for base in (c for c in cls.__mro__[1:] if c.__module__ != "builtins"):
            inherited = inspect.signature(base).parameters.get(name)
            if inherited is not None and inherited.annotation is not inspect.Parameter.empty:
                written = inspect.formatannotation(inherited.annotation).replace(
                    "torch.nn.modules.module.", "nn."
                )
                raise UsageError(
                    f"{cls.__name__}.__init__ gives {name!r} no type, so the command line cannot "
                    "make it.",
                    f"Expected {name}: {written}, as {base.__name__} has it.",
                )


def _classes(value: Any, where: str) -> Iterator[tuple[str, Config]]:  # noqa: ANN401
    """Yield all classes of a configuration with their places, outer ones first."""
    if _is_class(value):
        yield where, value
        value = value.get("init_args") or {}
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _classes(inner, f"{where}.{key}" if where else key)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _classes(inner, where)


def _say_what_is_kept(before: Config, after: Config) -> None:
    """Say which options of a configuration live on under a class it was not written for."""
    now = dict(_classes(after, ""))
    for where, old in _classes(before, ""):
        new = now.get(where)
        if new is None or new["class_path"] == old["class_path"]:
            continue
        given, kept = old.get("init_args") or {}, new.get("init_args") or {}
        same = [f"{k}={v}" for k, v in given.items() if k in kept and kept[k] == v]
        gone = [k for k in given if k not in kept]
        names = [c["class_path"].rpartition(".")[2] for c in (old, new)]
        line = f"--{where}: {names[1]} instead of {names[0]}"
        line += f"; kept {', '.join(same)}" if same else ""
        line += f"; dropped {', '.join(gone)}" if gone else ""
        print(line, file=sys.stderr)


def fill(model: Config, data: ImageDataModule) -> None:
    """Tell the parts of a model what the data knows, where nobody said otherwise.

    Args:
        model: Its configuration; changed in place.
        data: Where images come from.
    """
    for _, part in _classes(model, "model"):
        for name in _FILLED:
            if part["init_args"].get(name, ...) is None:
                value = getattr(data, name)
                part["init_args"][name] = list(value) if isinstance(value, tuple) else value


def typed(config: Config) -> Namespace:
    """Check a completed configuration and give its values their types.

    Raises:
        UsageError: If a value has the wrong type.
    """
    parser = build_parser()
    try:
        checked: Namespace = parser.parse_object(config)
    except (argparse.ArgumentError, TypeError, KeyError, ValueError) as error:
        raise explain(error, [], {}, known_options(parser)) from error
    return checked


def make(value: Any) -> Any:  # noqa: ANN401
    """Build the classes of a typed configuration, inner ones first.

    Unlike jsonargparse's own way, errors of constructors arrive as they were raised.
    """
    if isinstance(value, Namespace):
        if "class_path" not in value:
            return {name: make(inner) for name, inner in vars(value).items()}
        arguments = value.get("init_args")
        made = {name: make(inner) for name, inner in vars(arguments).items()} if arguments else {}
        return import_class(value.class_path)(**made)
    if isinstance(value, list | tuple):
        return type(value)(make(inner) for inner in value)
    if isinstance(value, dict):
        return {name: make(inner) for name, inner in value.items()}
    return value


def dump(config: Config) -> str:
    """Return a configuration as YAML that ``-c`` reads."""
    text: str = build_parser().dump(typed(config), skip_unset=False)
    return text
