"""A trained model, opened again: its weights, its configuration and its data."""

import argparse
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgsynth.cli import catalogue, runs
from imgsynth.cli.arguments import Options, Parser, split
from imgsynth.cli.errors import UsageError, listing


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        method: In evaluation mode and float32, on its device.
        checkpoint: Where its weights are from.
        folder: The run's folder.
        device: Where it is.
        config: The run's configuration; None for a checkpoint without its run.
    """

    method: Any
    checkpoint: Path
    folder: Path
    device: str
    config: dict[str, Any] | None

    @property
    def weights(self) -> str:
        """Which weights it has: ``averaged`` or ``live``."""
        return "live" if self.method.ema is None else "averaged"

    @property
    def title(self) -> str:
        """A line that says which model it is."""
        images = self.method.images_seen
        return f"{self.checkpoint}: {images:,} images seen, {self.weights} weights"

    def datamodule(self) -> Any:  # noqa: ANN401
        """Make the run's data, not loaded yet.

        Raises:
            UsageError: If the run is not there to say which data it had.
        """
        if self.config is None:
            runs.config_of(self.checkpoint)  # says what is missing
        from imgsynth.cli import parser

        assert self.config is not None
        return parser.make(parser.typed(self.config).data)

    def provenance(self, seeds: int) -> dict[str, Any]:
        """Return what made numbers, see :func:`provenance`."""
        return provenance(self.method, self.checkpoint, self.device, range(seeds))


def provenance(
    method: Any,  # noqa: ANN401
    checkpoint: Path,
    device: str,
    seeds: Iterable[int],
) -> dict[str, Any]:
    """Return what made numbers, and where: it is shown, but does not decide what compares."""
    import torch

    import imgsynth

    return {
        "checkpoint": str(checkpoint),
        "images_seen": method.images_seen,
        "updates": method.updates,
        "seeds": list(seeds),
        "device": device,
        "threads": torch.get_num_threads(),
        "precision": str(method.dtype).removeprefix("torch."),
        "imgsynth": imgsynth.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def add_options(parser: Parser) -> None:
    """Add the options that say which weights of a run are meant, and where they go."""
    add = parser.add_argument
    add("--checkpoint", metavar="C", help="best, last or a file (last)")
    add("--raw", action="store_true", help="the live weights instead of the averaged ones")
    add("--device", metavar="D", default="auto", help="cpu, cuda, cuda:1, mps (auto)")
    trust = "import classes of this package, which a checkpoint\nwithout its run names"
    add("--trust", metavar="PACKAGE", action="append", default=[], help=trust)
    other = "another value for an option of the run's data, such\nas --data.root FOLDER"
    add("--data.OPTION", metavar="VALUE", dest="_data", help=other)


def data_options(argv: list[str], command: str) -> tuple[list[str], Options]:
    """Split off ``--data.OPTION VALUE``.

    Args:
        argv: What follows the command.
        command: Its name, for the error.

    Raises:
        UsageError: If another part of the configuration is among them.
    """
    words, changes = changes_of(argv)
    other = [name for name, _ in changes if not name.startswith("data.")]
    if other:
        option = other[0].removeprefix("evaluate.")
        raise UsageError(
            f"imgsynth {command} has no option --{option}.",
            "Expected --data.OPTION for another value of the run's data; --help says more.",
        )
    return words, changes


def open_run(given: argparse.Namespace, changes: Options, *, needs_data: bool) -> Trained:
    """Load the model that a command line means.

    Args:
        given: The options of :func:`add_options`, and ``run``.
        changes: Options for the run's data.
        needs_data: Whether the run must be there to say which data it had.

    Raises:
        UsageError: If there is no such run or device.
        ValueError: If the checkpoint cannot be read or rebuilt.
    """
    path = runs.find_run(given.run)
    source = runs.folder_of(path) / runs.CONFIG
    if needs_data:
        source = runs.config_of(path)
    from imgsynth.cli.sample import device_name, trusted

    device = device_name(given.device)

    import torch

    import imgsynth
    from imgsynth.callbacks import quiet
    from imgsynth.cli import parser
    from imgsynth.cli.fit import make_working_directory_importable

    make_working_directory_importable()
    quiet()
    config = parser.parse([source], changes) if source.is_file() else None
    if config is not None and config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    checkpoint = checkpoint_of(path, given.checkpoint)
    packages = (*trusted(path), *given.trust)
    method = imgsynth.load(checkpoint, map_location=device, trusted=packages)
    if given.raw:
        method.ema = None
    # Half precision rounds an image by up to half a level, which a likelihood would see.
    return Trained(method.float(), checkpoint, runs.folder_of(path), device, config)


def methods_that_are(ancestor: str) -> str:
    """Return the names of our methods that inherit something, for errors."""
    names = catalogue.choices("methods")
    return listing(name for name in names if ancestor in catalogue.ancestors(name))


def changes_of(argv: list[str]) -> tuple[list[str], Options]:
    """Split off what goes to the run's configuration: ``--extractor...`` and ``--data...``."""
    words: list[str] = []
    theirs: list[str] = []
    target = words
    for word in argv:
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
            is_theirs = name == "extractor" or name.startswith(("extractor.", "data."))
            target = theirs if is_theirs else words
            if name.startswith("extractor"):
                word = f"--evaluate.{word[2:]}"
            target.append(word)
            target = target if "=" not in word else words
        else:
            target.append(word)
            target = words
    options, _ = split(theirs, set())
    return words, options


def checkpoint_of(path: Path, wanted: str | None) -> Path:
    """Return the checkpoint that is meant."""
    from imgsynth.callbacks import best_checkpoint
    from imgsynth.loading import find_checkpoint

    if path.is_file():
        if wanted is not None:
            raise UsageError(
                f"RUN is a checkpoint, and --checkpoint {wanted} names one too.",
                "Expected one of the two.",
            )
        return path
    if wanted in {None, "last"}:
        return find_checkpoint(path)
    if wanted == "best":
        best = best_checkpoint(runs.folder_of(path))
        if best is None:
            raise UsageError(
                f"{path} keeps no best checkpoint: it was not scored while it was trained.",
                "Expected --checkpoint last or a file, or a run with --evaluate.every.",
            )
        return best
    found = Path(str(wanted))
    for candidate in (found, runs.folder_of(path) / runs.CHECKPOINTS / found):
        if candidate.is_file():
            return candidate
    raise UsageError(
        f"There is no checkpoint {wanted!r}.", "Expected --checkpoint best, last or a file."
    )
