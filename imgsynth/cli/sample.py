"""Generate images from a trained model."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imgsynth.cli import runs
from imgsynth.cli.arguments import Parser
from imgsynth.cli.errors import UsageError

_CLASS = re.compile(r"^\s*(?:- )?class_path: *['\"]?([A-Za-z_]\w*)", re.MULTILINE)
_FILE = re.compile(r"\d{6,}(?:_label\d+)?\.png")
_MOST_IN_GRID = 100


def sample(argv: list[str]) -> int:
    """Write images as PNG files: ``imgsynth sample``.

    Args:
        argv: What follows the command.

    Returns:
        The exit code.

    Raises:
        UsageError: If the command line is wrong, or there is no such run.
    """
    given = _parser().parse(argv)
    path = runs.find_run(given.run)
    device = device_name(given.device)

    import imgsynth
    from imgsynth.cli.fit import make_working_directory_importable
    from imgsynth.methods import Sampler
    from imgsynth.types import parse_count

    num = parse_count(given.num, "--num")
    if num < 1:
        raise UsageError(f"--num must be at least 1, got {given.num}.")
    out = Path(given.out) if given.out else Path("samples") / runs.folder_of(path).name
    make_working_directory_importable()
    method = imgsynth.load(path, map_location=device, trusted=(*trusted(path), *given.trust))
    if not isinstance(method, Sampler):
        raise UsageError(
            f"{type(method).__name__} does not make images from nothing.",
            "Expected a run of a method that samples, such as a GAN.",
        )
    if reason := method.why_no_samples():
        raise UsageError(reason, "Expected a run of a method that samples.")
    labels = _labels(method, num, given.label)
    names = _names(num, labels)
    _refuse_mixture(out, names)
    images = method.sample_chunks(num, labels, seed=given.seed, ema=not given.raw)
    _write(method, images, names, out, given)
    print(f"Wrote {num:,} images and grid.png to {out}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "sample",
        "Write generated images as 8-bit PNG files of their native size, 000042_label3.png, and\n"
        "the first of them as grid.png. Image i depends on the checkpoint, the seed, i and its\n"
        "label alone: neither on how many are asked for nor on the device's batches.",
        "examples:\n  imgsynth sample runs/demo --num 100 --out digits\n"
        "  imgsynth sample runs/demo --num 16 --label 3 --seed 1 --out threes",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or one of its checkpoints")
    parser.add_argument(
        "--num", metavar="N", default="64", help="how many, such as 100 or 10k (64)"
    )
    parser.add_argument(
        "--label", metavar="L", type=int, help="the class of all images; without it all in turn"
    )
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="chooses the latents (0)")
    parser.add_argument("--out", metavar="DIR", help="where to (samples/ and the run's name)")
    parser.add_argument(
        "--raw", action="store_true", help="use the live weights instead of the averaged ones"
    )
    parser.add_argument(
        "--device", metavar="D", default="auto", help="cpu, cuda, cuda:1, mps (auto)"
    )
    parser.add_argument(
        "--trust",
        metavar="PACKAGE",
        action="append",
        default=[],
        help="import classes of this package, which a checkpoint without its run names",
    )
    return parser


def device_name(device: str) -> str:
    """Return the device that ``--device`` names: ``auto`` becomes what there is.

    Raises:
        UsageError: If there is no such device.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise UsageError(
            f"--device {device!r} is unknown.", "Expected auto, cpu, cuda, cuda:1 or mps."
        )

    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    has_cuda = torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()
    has = {"cpu": True, "cuda": has_cuda, "mps": torch.backends.mps.is_available()}
    if not has[kind]:
        raise UsageError(
            f"--device {device}: this machine has no such device.", "Expected cpu or auto."
        )
    return device


def trusted(path: Path) -> Iterator[str]:
    """Yield the packages that the run's own configuration names: the user chose them."""
    config = runs.folder_of(path) / runs.CONFIG
    if config.is_file():
        yield from sorted(set(_CLASS.findall(config.read_text(encoding="utf-8"))))


def _labels(method: Any, num: int, label: int | None) -> Any:  # noqa: ANN401
    import torch

    if label is None:
        return torch.arange(num) % method.num_classes if method.num_classes else None
    if not method.num_classes:
        raise UsageError(f"--label {label}: the model is unconditional, it has no classes.")
    if not 0 <= label < method.num_classes:
        raise UsageError(
            f"--label {label}: there is no such class.",
            f"Expected 0 to {method.num_classes - 1}.",
        )
    return torch.full((num,), label)


def _names(num: int, labels: Any) -> list[str]:  # noqa: ANN401
    if labels is None:
        return [f"{i:06d}.png" for i in range(num)]
    return [f"{i:06d}_label{label}.png" for i, label in enumerate(labels.tolist())]


def _refuse_mixture(out: Path, names: list[str]) -> None:
    """Refuse to put images among those of another call: nobody could tell them apart."""
    if not out.is_dir():
        return
    others = {p.name for p in out.iterdir() if _FILE.fullmatch(p.name)} - set(names)
    if others:
        raise UsageError(
            f"{str(out)!r} holds {len(others)} images of another call, such as {min(others)}.",
            "Expected a folder without them: --out DIR.",
        )


def _write(
    method: Any,  # noqa: ANN401
    images: Iterator[Any],
    names: list[str],
    out: Path,
    given: argparse.Namespace,
) -> None:
    import torch
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    from imgsynth.describe import class_path
    from imgsynth.images import grid, save_png

    text = {
        "Software": "imgsynth",
        "Method": class_path(type(method)),
        "Images seen": str(method.images_seen),
        "Seed": str(given.seed),
        "Weights": "live" if given.raw or method.ema is None else "averaged",
    }
    first: list[torch.Tensor] = []
    remaining = iter(names)
    with tqdm(total=len(names), unit=" images", leave=False, disable=None) as bar:
        for chunk in images:
            for image in chunk.cpu():
                if len(first) < _MOST_IN_GRID:
                    first.append(image)
                save_png(out / next(remaining), image, text)
            bar.update(len(chunk))
    columns = min(_columns(method.num_classes if given.label is None else 0), len(first))
    save_png(out / "grid.png", grid(torch.stack(first), columns=columns), text)


def _columns(classes: int) -> int:
    """Return about ten columns, so that each shows one class where labels take turns."""
    return classes * max(1, 10 // classes) if 0 < classes <= 20 else 10
