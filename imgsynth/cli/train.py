"""A configured run: what is checked before it, and the Trainer with our callbacks."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger, WandbLogger

from imgsynth.callbacks import (
    Checkpoint,
    Evaluate,
    GracefulStop,
    Length,
    Progress,
    Samples,
    StepProfiler,
    Watchdog,
    quiet,
)
from imgsynth.callbacks.watchdog import leave_with_parent
from imgsynth.cli import parser, runs
from imgsynth.cli.errors import EXIT_CODE, UsageError
from imgsynth.loggers import Record, WandB
from imgsynth.strategies import why_not


def train(config: dict[str, Any], folder: Path, checkpoint: Path | None, profile: bool) -> int:
    """Run what a configuration describes.

    Args:
        config: The whole configuration; what follows from the data is filled in.
        folder: The run's folder.
        checkpoint: Where to continue; None begins.
        profile: Whether to show at the end where the time of a step went.

    Returns:
        The exit code: 0, or 128 + signal if a signal stopped the run.

    Raises:
        UsageError: If this machine or the method cannot do it.
    """
    if profile:
        _check_profiler(config["trainer"])
    if runs.was_started_by_lightning():
        leave_with_parent()
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
    _say(trainer, _summary(method, folder, trainer.checkpoint_callbacks))
    return 0


def _check_engine(trainer: dict[str, Any], method: Any) -> None:  # noqa: ANN401
    """Name our own options for what Lightning cannot do with two optimisers."""
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


def _check_processors(trainer: Trainer) -> None:
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
) -> Trainer:
    """Make the Trainer with our callbacks and record, and those the user adds."""
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
    ours: list[Logger] = [Record(folder)]
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        _check_wandb(config["wandb"])
    else:
        # First, so that the record's clock does not run while W&B starts.
        ours.insert(0, WandB(folder, **config["wandb"], config=config))
    callbacks += _looking(config)
    return Trainer(
        **arguments,
        callbacks=callbacks,
        logger=[*ours, *loggers],
        default_root_dir=folder,
        use_distributed_sampler=False,
    )


def _looking(config: dict[str, Any]) -> list[Callback]:
    """Make what looks at the model while it is trained; the best checkpoint is by its score."""
    callbacks: list[Callback] = [Samples(**config["samples"])]
    checkpoint = dict(config["checkpoint"])
    if evaluates(config):
        evaluate = Evaluate(**parser.make(parser.typed(config).evaluate))
        callbacks.append(evaluate)
        if checkpoint["monitor"] is None:
            checkpoint |= evaluate.settings.monitored()
    return [*callbacks, Checkpoint(**checkpoint)]


def evaluates(config: dict[str, Any]) -> bool:
    """Say whether a configuration asks for scores: any option of theirs does."""
    defaults = parser.defaults_of(Evaluate)
    return any(value != defaults[name] for name, value in config["evaluate"].items())


def _check_wandb(given: dict[str, Any]) -> None:
    defaults = parser.defaults_of(WandB)
    for name, value in given.items():
        if value != defaults[name]:
            raise UsageError(
                f"--wandb.{name} and a WandbLogger among --trainer.logger both describe the run.",
                "Expected one of the two.",
            )


def _listed(value: Any) -> list[Any]:  # noqa: ANN401
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _say(trainer: Trainer, text: str) -> None:
    if trainer.is_global_zero:
        print(text, flush=True)


def _summary(method: Any, folder: Path, checkpoints: list[Any]) -> str:  # noqa: ANN401
    names = ("training.gif", "samples/", "checkpoints/", "record.jsonl", runs.CONFIG)
    left = sorted(path.name for path in folder.glob("final*.png"))
    left += [name for name in names if (folder / name).exists()]
    lines = [f"Trained on {method.images_seen:,} images. In {folder}: {', '.join(left)}."]
    lines += [c.praise() for c in checkpoints if isinstance(c, Checkpoint) and c.best is not None]
    metrics = method.trainer.callback_metrics
    own = [key for key in getattr(method, "reports", ()) if key in metrics and key in method.scored]
    if own:
        lines.append(", ".join(f"{key} {float(metrics[key]):.4g}" for key in own))
    elif method.reports:
        lines.append(
            "No validation: it comes after each epoch, if the data holds images out. Train longer, "
            "or set --trainer.val_check_interval to a number of updates."
        )
    if hasattr(method, "reconstruct") and own:
        lines.append(f"Reconstructions: imgsynth reconstruct {folder} --out images")
    if hasattr(method, "log_likelihood") and own:
        lines.append(f"Its likelihood: imgsynth likelihood {folder}")
    if hasattr(method, "sample") and method.why_no_samples() is None:
        lines.append(f"Images from it: imgsynth sample {folder} --num 100 --out images")
        if method.scored:
            lines.append(f"Its scores: imgsynth evaluate {folder} --seeds 3")
    return "\n".join(lines)
