"""Train a model, and continue training it."""

import os
import sys
from pathlib import Path
from typing import Any

from imgsynth.cli import recipes, runs
from imgsynth.cli.arguments import Options, Parser, split
from imgsynth.cli.errors import EXIT_CODE, UsageError, did_you_mean, listing, nearest

_RUN = ("name", "out")
_CHANGEABLE = (
    *("trainer", "samples", "checkpoint", "wandb"),
    *("data.batch_size", "data.num_workers", "data.device_resident"),
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

    _make_working_directory_importable()
    config = parser.parse(configs, options)
    if "print_config" in flags:
        print(parser.dump(config), end="")
        return 0
    _check_numbers(config)
    stem = configs[0].stem if configs else ""  # further ones are layers over it
    proposal = stem if stem and stem != "config" else _proposal(config)
    folder = runs.new_folder(named.get("out", "runs"), named.get("name"), proposal)
    return _train(config, folder, None, "profile" in flags)


def check_names(options: Options, where: str = "") -> None:
    """Refuse options whose first word is unknown, before anything slow is imported.

    Args:
        options: Options by name; the keys of a configuration likewise.
        where: Said in the error.

    Raises:
        UsageError: If there is one.
    """
    groups = ["model", "data", "trainer", "samples", "checkpoint", "wandb"]
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
        if name in {"trainer", "samples", "checkpoint", "wandb"} and not where:
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
        "runs may change: --trainer.devices 2, --data.num_workers 4, --checkpoint.every 10k. On\n"
        "another number of devices the same images follow; random numbers differ.",
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
    from imgsynth.loading import read_checkpoint

    _make_working_directory_importable()
    longer = [("images", given.images), ("trainer.max_steps", "-1"), ("trainer.max_epochs", "null")]
    config = parse([source], [*changes, *(longer if given.images is not None else [])])
    _check_numbers(config)
    folder = runs.folder_of(path)
    checkpoint = path if path.is_file() else newest_checkpoint(folder)
    if checkpoint is None:
        print(f"{folder} has no checkpoint yet: it starts again.")
        return _train(config, folder, None, given.profile)
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
    return _train(config, folder, checkpoint, given.profile)


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


def _make_working_directory_importable() -> None:
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


def _train(config: dict[str, Any], folder: Path, checkpoint: Path | None, profile: bool) -> int:
    import torch
    from lightning.pytorch import seed_everything

    from imgsynth.callbacks import GracefulStop, Watchdog, quiet
    from imgsynth.cli import parser

    if profile:
        _check_profiler(config["trainer"])
    quiet()
    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
        os.environ["OMP_NUM_THREADS"] = str(config["threads"])  # processes that Lightning starts
    seed_everything(config["seed"], verbose=False)
    data = parser.make(parser.typed({**config}).data)
    parser.fill(config["model"], data)
    typed = parser.typed(config)
    method = parser.make(typed.model)
    method.description = config["model"]
    _check_engine(config["trainer"], method)
    arguments = parser.make(typed.trainer)
    _check_devices(arguments)
    given = _listed(arguments.pop("callbacks"))
    watchdog = next((c for c in given if isinstance(c, Watchdog)), Watchdog())
    stop = GracefulStop()
    callbacks = [watchdog, stop, *(c for c in given if c is not watchdog)]
    trainer = _trainer(arguments, config, folder, callbacks, profile)
    _check_processors(trainer)
    runs.write_config(folder, f"# imgsynth fit -c {runs.CONFIG}\n{parser.dump(config)}")
    devices = f" ({trainer.world_size} devices)" if trainer.world_size > 1 else ""
    _say(trainer, f"Run folder: {folder}{devices}")
    where = str(checkpoint) if checkpoint is not None else None
    try:
        trainer.fit(method, datamodule=data, ckpt_path=where, weights_only=True)
    except Exception as error:
        if watchdog.verdict is None:
            raise
        if not watchdog.verdict:  # another process says it
            return EXIT_CODE
        raise UsageError(*watchdog.verdict.splitlines()) from error
    if stop.signal is not None:
        return 128 + stop.signal
    _say(trainer, _summary(method, folder))
    return 0


def _check_engine(trainer: dict[str, Any], method: Any) -> None:  # noqa: ANN401
    """Name our own options for what Lightning cannot do with two optimisers."""
    from imgsynth.strategies import why_not

    reason = why_not(trainer["strategy"])
    if reason:
        raise UsageError(
            f"--trainer.strategy {trainer['strategy']} cannot train {type(method).__name__}: "
            f"{reason}.",
            "Expected ddp, or nothing: several devices choose it.",
        )
    if method.automatic_optimization:
        return
    ours = {
        "gradient_clip_val": "--model.generator_clip and --model.discriminator_clip",
        "gradient_clip_algorithm": "--model.generator_clip and --model.discriminator_clip",
        "accumulate_grad_batches": "--model.accumulate",
    }
    for name, instead in ours.items():
        if trainer[name] != (1 if name == "accumulate_grad_batches" else None):
            raise UsageError(
                f"--trainer.{name} does not work with two optimisers, as {type(method).__name__} "
                "has them.",
                f"Expected {instead}.",
            )


def _check_profiler(trainer: dict[str, Any]) -> None:
    if trainer["profiler"] is not None:
        raise UsageError(
            "--profile and --trainer.profiler both say how the run is profiled.",
            "Expected one of the two.",
        )


def _check_devices(trainer: dict[str, Any]) -> None:
    """Say that there is no GPU before Lightning does, and take the number that torchrun started."""
    import torch

    wanted = trainer["accelerator"]
    found = torch.cuda.is_available() or (wanted == "gpu" and torch.backends.mps.is_available())
    if wanted in {"cuda", "gpu"} and not found:
        raise UsageError(
            f"--trainer.accelerator {wanted}: torch finds no GPU on this machine.",
            "Expected cpu or auto.",
        )
    if str(trainer["devices"]) == "0":
        raise UsageError("--trainer.devices 0: a run needs a device.", "Expected at least 1.")
    if "TORCHELASTIC_RUN_ID" in os.environ and trainer["devices"] == "auto":
        trainer["devices"] = int(os.environ["LOCAL_WORLD_SIZE"])
        trainer["num_nodes"] = int(os.environ["WORLD_SIZE"]) // trainer["devices"]


def _check_processors(trainer: Any) -> None:  # noqa: ANN401
    """Refuse to start more processes than there are processors to run them."""
    processors = os.cpu_count() or 1
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > processors:
        raise UsageError(
            f"--trainer.devices {trainer.num_devices}: this machine has {processors} processors "
            "and no GPU.",
            f"Expected 1 to {processors}.",
        )


def _trainer(
    arguments: dict[str, Any],
    config: dict[str, Any],
    folder: Path,
    callbacks: list[Any],
    profile: bool,
) -> Any:  # noqa: ANN401
    """Make the Trainer with our callbacks and record, and those the user adds."""
    from lightning.pytorch import Trainer

    from imgsynth.callbacks import Checkpoint, Length, Progress, Samples, StepProfiler
    from imgsynth.loggers import Record, WandB

    loggers = _listed(arguments.pop("logger"))
    if arguments["enable_progress_bar"] is not False:
        callbacks.append(Progress())
    if config["images"] is not None:
        callbacks.append(Length(config["images"]))
    if arguments["max_epochs"] is None:
        arguments["max_epochs"] = -1
    if arguments["enable_model_summary"] is None:
        arguments["enable_model_summary"] = False
    if profile:
        arguments["profiler"] = StepProfiler()
    # First, so that the record's clock does not run while W&B starts.
    wandb = WandB(folder, **config["wandb"], config=config)
    callbacks += [Samples(**config["samples"]), Checkpoint(**config["checkpoint"])]
    return Trainer(
        **arguments,
        callbacks=callbacks,
        logger=[wandb, Record(folder), *loggers],
        default_root_dir=folder,
        use_distributed_sampler=False,
    )


def _listed(value: Any) -> list[Any]:  # noqa: ANN401
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _say(trainer: Any, text: str) -> None:  # noqa: ANN401
    if trainer.is_global_zero:
        print(text, flush=True)


def _summary(method: Any, folder: Path) -> str:  # noqa: ANN401
    names = ("final.png", "training.gif", "samples/", "checkpoints/", "record.jsonl", runs.CONFIG)
    left = [name for name in names if (folder / name).exists()]
    lines = [f"Trained on {method.images_seen:,} images. In {folder}: {', '.join(left)}."]
    if hasattr(method, "sample"):
        lines.append(f"Images from it: imgsynth sample {folder} --num 100 --out images")
    return "\n".join(lines)
