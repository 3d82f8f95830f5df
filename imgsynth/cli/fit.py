"""Train a model, and continue training it."""

import sys
from pathlib import Path
from typing import Any

from imgsynth.cli import recipes, runs
from imgsynth.cli.arguments import Options, Parser, split
from imgsynth.cli.errors import UsageError, did_you_mean, listing, nearest

_RUN = ("name", "out")
_CHANGEABLE = (
    *("trainer", "samples", "evaluate", "checkpoint", "wandb"),
    *("data.batch_size", "data.num_workers", "data.device_resident"),
    *("data.root", "data.table", "data.cache", "data.cache_gb"),
)
"""What may differ when a run is resumed: where and how it runs, not what it trains."""


def fit(argv: list[str]) -> int:
    """Start a run: ``imgsynth fit``.

    Args:
        argv: What follows the command.

    Returns:
        The exit code: 0, or 128 + signal if a signal stopped the run.

    Raises:
        UsageError: If the command line is wrong.
    """
    options, flags = split(argv, {"print_config", "profile"})
    configs = [recipes.find(value) for name, value in options if name == "config"]
    for path in configs:
        check_names([(key, "") for key in recipes.read(path)], f" (in {path})")
    named = {name: value for name, value in options if name in _RUN}
    options = [o for o in options if o[0] not in {"config", *_RUN}]
    check_names(options)

    from imgsynth.cli import parser
    from imgsynth.cli.train import train

    make_working_directory_importable()
    config = parser.parse(configs, options)
    if "print_config" in flags:
        print(parser.dump(config), end="")
        return 0
    _check_numbers(config)
    stem = configs[0].stem if configs else ""  # further ones are layers over it
    proposal = stem if stem and stem != "config" else _proposal(config)
    folder = runs.new_folder(named.get("out", "runs"), named.get("name"), proposal)
    return train(config, folder, None, "profile" in flags)


def check_names(options: Options, where: str = "") -> None:
    """Refuse options whose first word is unknown, before anything slow is imported.

    Args:
        options: Options by name; the keys of a configuration likewise.
        where: Said in the error.

    Raises:
        UsageError: If there is one.
    """
    groups = ["model", "data", "trainer", "samples", "evaluate", "checkpoint", "wandb"]
    known = [*groups, "config", "images", "seed", "threads", "name", "out"]
    known += ["print_config", "profile"]
    for name, _ in options:
        first = name.partition(".")[0]
        if first not in known or (first not in groups and first != name):
            meant = nearest(first if first not in known else name, known)
            raise UsageError(
                f"There is no option --{name}{where}.",
                f"Options: {listing(f'--{k}' for k in known)}.",
                did_you_mean(f"--{m}" for m in meant),
            )
        if name in set(groups) - {"model", "data"} and not where:
            shown = "WandB" if name == "wandb" else name.capitalize()
            raise UsageError(
                f"--{name} is a group of options.",
                f"Expected --{name}.OPTION; `imgsynth help {shown}` shows them.",
            )


def resume(argv: list[str]) -> int:
    """Continue a run in its folder: ``imgsynth resume``.

    Args:
        argv: What follows the command.

    Returns:
        The exit code: 0, or 128 + signal if a signal stopped the run.

    Raises:
        UsageError: If the command line is wrong, or there is no such run.
    """
    parser = Parser(
        "resume",
        "Continue a run from its newest checkpoint, in the same folder, as if it had never been\n"
        "interrupted. A run without a checkpoint starts again. Options that say where and how it\n"
        "runs may change: --trainer.devices 2, --data.num_workers 4, --checkpoint.every 10k,\n"
        "--wandb.mode online, --data.root for a folder that has moved.\n"
        "On another number of devices the same images follow; random numbers\n"
        "differ.",
        "examples:\n  imgsynth resume runs/demo\n  imgsynth resume runs/demo --images 1M\n"
        "  imgsynth resume runs/demo --trainer.devices 2",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or one of its checkpoints")
    parser.add_argument("--images", metavar="N", help="a new length, such as 400k")
    parser.add_argument("--profile", action="store_true", help="show where a step's time goes")
    own, changes = _changes(argv)
    given = parser.parse(own)
    path = runs.find_run(given.run)
    source = runs.config_of(path)

    from imgsynth.callbacks import newest_checkpoint
    from imgsynth.cli.parser import parse
    from imgsynth.cli.train import train
    from imgsynth.loading import read_checkpoint

    make_working_directory_importable()
    longer = [("images", given.images), ("trainer.max_steps", "-1"), ("trainer.max_epochs", "null")]
    config = parse([source], [*changes, *(longer if given.images is not None else [])])
    _check_numbers(config)
    folder = runs.folder_of(path)
    checkpoint = path if path.is_file() else newest_checkpoint(folder)
    if checkpoint is None:
        print(f"{folder} has no checkpoint yet: it starts again.")
        return train(config, folder, None, given.profile)
    try:
        state = read_checkpoint(checkpoint)["imgsynth"]
    except ValueError as error:
        before = [p for p in checkpoint.parent.glob("images-*.ckpt") if p.name < checkpoint.name]
        if not before:
            raise
        raise UsageError(str(error), f"The one before: imgsynth resume {max(before)}") from error
    if _is_complete(config, state):
        print(
            f"{folder} is complete: {state['images_seen']:,} images. "
            f"--images with a larger number continues it."
        )
        return 0
    return train(config, folder, checkpoint, given.profile)


def _changes(argv: list[str]) -> tuple[list[str], Options]:
    """Split what ``resume`` is given into its own arguments and options of the run."""
    own: list[str] = []
    words: list[str] = []
    for word in argv:
        value = bool(words) and words[-1].startswith("--") and "=" not in words[-1]
        is_option = word.startswith("--") and "." in word.partition("=")[0]
        (words if is_option or (value and not word.startswith("--")) else own).append(word)
    changes, _ = split(words, set())
    for name, _ in changes:
        if name.partition(".")[0] not in _CHANGEABLE and name not in _CHANGEABLE:
            raise UsageError(
                f"--{name} cannot change when a run is resumed.",
                f"Expected options of {listing(f'--{n}' for n in _CHANGEABLE)}, or a new run.",
            )
    check_names(changes)
    return own, changes


def _is_complete(config: dict[str, Any], state: dict[str, Any]) -> bool:
    from imgsynth.types import parse_count

    if config["images"] is not None:
        return bool(state["images_seen"] >= parse_count(config["images"]))
    steps = config["trainer"]["max_steps"]
    return bool(0 <= steps <= state["updates"])


def make_working_directory_importable() -> None:
    """Let ``--model my_package.MyGAN`` find modules of the working directory.

    At the end of the path: a file called like an installed package does not hide it.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def _proposal(config: dict[str, Any]) -> str:
    parts = [config[name]["class_path"].rpartition(".")[2] for name in ("model", "data")]
    return "-".join(parts).lower()


def _check_numbers(config: dict[str, Any]) -> None:
    """Check what the types do not say: the seed's range and the run's length."""
    from imgsynth.types import parse_count

    if not 0 <= config["seed"] < 2**32:
        raise UsageError(f"--seed must be between 0 and {2**32 - 1}, got {config['seed']}.")
    if config["threads"] is not None and config["threads"] < 1:
        raise UsageError(f"--threads must be at least 1, got {config['threads']}.")
    trainer = config["trainer"]
    limits = [
        f"--trainer.{name} {trainer[name]}"
        for name, none in (("max_steps", -1), ("max_epochs", None), ("max_time", None))
        if trainer[name] not in {none, -1}
    ]
    if config["images"] is None:
        if not limits and not trainer["fast_dev_run"]:
            raise UsageError(
                "The run has no length.",
                "Expected --images followed by the real images to see, such as 200k or 1.5M.",
            )
    elif parse_count(config["images"], "--images") < 1:
        raise UsageError(f"--images must be at least 1, got {config['images']}.")
    elif limits and not limits[0].startswith("--trainer.max_time"):
        raise UsageError(
            f"--images {config['images']} and {limits[0]} both say how long the run is.",
            "Expected one of them.",
        )
