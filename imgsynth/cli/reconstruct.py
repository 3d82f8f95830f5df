"""Images as a trained model gives them back, and how well it knows them."""

import argparse
import csv
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from imgsynth.cli import runs
from imgsynth.cli.arguments import Parser
from imgsynth.cli.errors import UsageError, did_you_mean, nearest
from imgsynth.cli.inputs import Block, Images, held_out, labels_of, own, printable
from imgsynth.cli.likelihood import (
    at_least_one,
    bounds,
    given_labels,
    has_likelihood,
    lie_on_levels,
)
from imgsynth.cli.trained import (
    Trained,
    add_options,
    data_options,
    methods_that_are,
    open_run,
)

if TYPE_CHECKING:
    from torch import Tensor

_COLUMNS, _ROWS = 8, 4  # of the sheets
_MOST_NAMED = 5
_MEANINGS = {
    "mse": "mean squared error of a value, intensities from -1 to 1",
    "psnr": "dB, higher is better",
    "psnr_input": "dB, of the corrupted images before they were restored",
    "elbo": "nats an image, a lower bound on log P(x), higher is better",
    "log_likelihood": "nats an image, a closer bound, by {num} latents an image",
    "kl": "nats an image, what the latents say of it",
    "bpd": "bits per dimension of log_likelihood, lower is better",
}


def reconstruct(argv: list[str]) -> int:
    """Encode images and decode them again: ``imgsynth reconstruct``.

    Args:
        argv: What follows the command.

    Returns:
        The exit code.

    Raises:
        UsageError: If the command line is wrong, or the model does not reconstruct.
    """
    words, changes = data_options(argv, "reconstruct")
    parser = _parser()
    given = parser.parse(_places_first(words, parser))
    at_least_one("--num-samples", given.num_samples)
    folder = runs.folder_of(runs.find_run(given.run))
    out = Path(given.out) if given.out else Path("reconstructions") / folder.name
    _check_input(given, out)
    trained = open_run(given, changes, needs_data=given.input is None)

    from imgsynth.types import parse_count

    num = None if given.num is None else parse_count(given.num, "--num")
    at_least_one("--num", num)
    _check_method(trained, given)
    images, labels = _images(trained, given, num)
    files = _files(images)
    _refuse_mixture(out, files)
    found = _Work(trained, images, labels, given).run(out, files)
    print(_summary(trained, images, found, files, given))
    print(f"\nWrote {', '.join(found.written)} and {images.num:,} images to {out}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "reconstruct",
        "Encode images and decode them again, and say how well that went. Without IN: the\n"
        "held-out images of the run's own data. With IN: an image file, or a folder of them,\n"
        "brought to the model's size and channels as the run does with its own.\n"
        "\n"
        "What an autoencoder loses, it has no words for: look for what is missing or has become\n"
        "something else. Of a VAE the table also says how likely each image is, and which are\n"
        "odd. Written to the folder:\n"
        "  sheet.png           the first images above, their reconstructions below\n"
        "  anomalies.png       the same of the most anomalous (first rows) and the least (last)\n"
        "  table.csv           a row an image: errors, likelihood, anomaly score\n"
        "  images/             each reconstruction, 000042.png or by its source's name\n"
        "  traversal.png       a row a latent, from -3 to 3 (VAE)\n"
        "  interpolation.png   a row leads from one image to another (VAE)",
        "examples:\n  imgsynth reconstruct runs/vae --num 200\n"
        "  imgsynth reconstruct runs/vae photos --out mine\n"
        "  imgsynth reconstruct runs/vae seven.png --label 7\n"
        "  imgsynth reconstruct runs/denoising --corrupt",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run, or one of its checkpoints")
    add("input", metavar="IN", nargs="?", help="an image file or a folder of images")
    add("--num", metavar="N", help="the first N images only")
    add("--split", metavar="S", help="which held-out images (test, or val where there is none)")
    add("--label", metavar="L", help="tells a conditional model the class of all images, by\n"
        "number or name; without it, that of the data, or of the\nfolder in IN")  # fmt: skip
    add("--corrupt", action="store_true",
        help="of a model that learned to restore: corrupt the images\n"
        "as in training, always in the same way, and restore them")  # fmt: skip
    add("--num-samples", metavar="K", type=int, default=10,
        help="latents an image for the likelihood (10)")  # fmt: skip
    add("--out", metavar="DIR", help="where to (reconstructions/ and the run's name)")
    add_options(parser)
    return parser


def _places_first(words: list[str], parser: Parser) -> list[str]:
    """Put RUN and IN before the options: argparse drops an IN that follows one."""
    flags = {name for action in parser._actions if action.nargs == 0
             for name in action.option_strings}  # fmt: skip
    places: list[str] = []
    options: list[str] = []
    for word in words:
        follows = bool(options) and options[-1] not in flags and "=" not in options[-1]
        is_value = follows and options[-1].startswith("--")
        (options if is_value or word.startswith("-") else places).append(word)
    return [*places, *options]


# -- what is refused ------------------------------------------------------------------------------


def _check_input(given: argparse.Namespace, out: Path) -> None:
    if given.input is None:
        return
    if given.split is not None:
        raise UsageError(
            f"IN and --split {given.split} both say which images.", "Expected one of the two."
        )
    path = Path(given.input).expanduser()
    if path.exists():
        _check_place(path, out)
        return
    parent = path.parent if path.parent.is_dir() else Path()
    names = [p.name for p in parent.iterdir()]
    raise UsageError(
        f"There is no image or folder at {given.input!r}.",
        "Expected an image file, or a folder of images; without IN, the run's held-out images.",
        did_you_mean(str(parent / name) for name in nearest(path.name, names, 2)),
    )


def _check_place(path: Path, out: Path) -> None:
    """Refuse to write among the images that are read: they would become some of them."""
    target, source = out.resolve(), path.resolve()
    inside = path.is_dir() and target.is_relative_to(source)
    if inside or source.is_relative_to(target / "images"):
        raise UsageError(
            f"The reconstructions in {str(out)!r} would lie among the images of {str(path)!r} and "
            "become some of them.",
            "Expected --out DIR with a folder outside of it.",
        )


def _check_method(trained: Trained, given: argparse.Namespace) -> None:
    from imgsynth.methods import Reconstructor

    method = trained.method
    if not isinstance(method, Reconstructor):
        raise UsageError(
            f"{type(method).__name__} does not reconstruct images: it has no encoder.",
            f"Expected a run of {methods_that_are('Reconstructor')}.",
        )
    if given.corrupt and not _can_restore(method):
        raise UsageError(
            "--corrupt: the model did not learn to restore images, it has no corruption.",
            "Expected a run with --model.corruption.",
        )


def _can_restore(method: object) -> bool:
    return getattr(method, "corruption", None) is not None


def _images(
    trained: Trained, given: argparse.Namespace, num: int | None
) -> tuple[Images, "Tensor | None"]:
    """Return the images that are meant, and the labels the user says they have."""
    needed = _is_conditional(trained.method)
    if given.input is not None:
        images = own(trained, Path(given.input).expanduser(), num)
        return images, labels_of(trained, images, given.label, needed=needed)
    images = held_out(trained, given.split, num)
    if given.label is None:
        return images, None
    return images, labels_of(trained, images, given.label, needed=needed)


def _is_conditional(method: Any) -> bool:  # noqa: ANN401
    """Say whether encoding takes labels; of others only what generates may know classes."""
    from imgsynth.methods.latent_space import LatentSpace

    return isinstance(method, LatentSpace) and bool(method.num_classes)


def _files(images: Images) -> list[str]:
    """Return the name of each reconstruction in the folder ``images``."""
    if images.sources is None or not images.is_own:
        return [f"{place:06d}.png" for place in range(images.num)]
    names = [str(PurePosixPath(name).with_suffix(".png")) for name in images.sources]
    seen: set[str] = set()
    twice = {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
    pairs = zip(names, images.sources, strict=True)
    return [f"{source}.png" if name in twice else name for name, source in pairs]


def _refuse_mixture(out: Path, files: list[str]) -> None:
    """Refuse to put images among those of another call: nobody could tell them apart."""
    folder = out / "images"
    others = {str(p.relative_to(folder)) for p in folder.rglob("*.png")} - set(files)
    if others:
        raise UsageError(
            f"{str(folder)!r} holds {len(others)} images of another call, such as {min(others)}.",
            "Expected a folder without them: --out DIR.",
        )


# -- the work -------------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """One image, with what became of it: ``(L, C, H, W)``, and how anomalous it is."""

    score: float
    place: int
    lines: "Tensor"


class _Result(NamedTuple):
    """What was found.

    Attributes:
        rows: The table: numbers by column, for each image.
        is_discrete: Whether probabilities of the images exist.
        written: The sheets and the table.
    """

    rows: list[dict[str, Any]]
    is_discrete: bool
    written: list[str]

    @property
    def scored(self) -> str:
        """The column that anomalies are named by."""
        return "anomaly_score" if "anomaly_score" in self.rows[0] else "mse"


class _Work:
    """Reconstructs block after block; memory does not depend on how many there are."""

    def __init__(
        self,
        trained: Trained,
        images: Images,
        labels: "Tensor | None",
        given: argparse.Namespace,
    ) -> None:
        self.trained = trained
        self.method = trained.method
        self.images = images
        self.labels = labels
        self.given = given
        if given.corrupt:  # on the CPU, so that it is the same on every device
            self.method.corruption.cpu()
        self.rows: list[dict[str, Any]] = []
        self.extremes: tuple[list[_Seen], list[_Seen]] = ([], [])
        self.first: list[Tensor] = []  # lines of the sheet
        self.is_discrete = True
        self.text = self._text()

    def run(self, out: Path, files: list[str]) -> _Result:
        """Reconstruct all images and write everything.

        Args:
            out: The folder.
            files: The name of each reconstruction.
        """
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        from imgsynth.images import save_png
        from imgsynth.methods.sampler import shown

        walks: dict[str, Tensor] = {}
        with tqdm(total=self.images.num, unit=" images", leave=False, disable=None) as bar:
            for block in self.images.blocks():
                start = len(self.rows)
                labels = self._labels(block, start)
                lines = self._reconstructed(block, labels, start)
                self._measure(block, labels, lines)
                self._remember(lines, start)
                if not start:
                    walks = self._walks(lines, labels)
                for image, name in zip(shown(lines[-1]), files[start:], strict=False):
                    save_png(out / "images" / name, image, self.text)
                bar.update(len(block.images))
        sheets = {"sheet": self._sheet(self.first), "anomalies": self._anomalies(), **walks}
        for name, sheet in sheets.items():
            save_png(out / f"{name}.png", sheet, self.text)
        _write_table(out / "table.csv", self._table(files))
        written = [f"{name}.png" for name in sheets] + ["table.csv"]
        return _Result(self.rows, self.is_discrete, written)

    def _labels(self, block: Block, start: int) -> "Tensor | None":
        if not _is_conditional(self.method):
            return None
        if self.labels is None:
            return given_labels(self.method, block.labels, self.trained.device)
        return self.labels[start : start + len(block.images)].to(self.trained.device)

    def _reconstructed(self, block: Block, labels: "Tensor | None", start: int) -> list["Tensor"]:
        """Return images, if asked for corrupted ones, and reconstructions, all on the CPU."""
        import torch

        from imgsynth import seeding

        lines = [block.images]
        if self.given.corrupt:  # one by one: an image's noise depends on its place alone
            lines.append(torch.cat([
                self.method.corrupted(image[None], seed=seeding.fold(0, start + place))
                for place, image in enumerate(block.images)
            ]))  # fmt: skip
        made = self.method.reconstruct(lines[-1].to(self.trained.device), labels)
        return [*lines, made.float().cpu()]

    def _measure(self, block: Block, labels: "Tensor | None", lines: list["Tensor"]) -> None:
        """Add a row for each image of a block."""
        start = len(self.rows)
        error = _mse(lines[0], lines[-1])
        columns = {"mse": error, "psnr": _psnr(error)}
        if len(lines) > 2:
            columns["psnr_input"] = _psnr(_mse(lines[0], lines[1]))
        if has_likelihood(self.method):
            columns |= self._likelihoods(block, labels, start)
        told = labels if labels is not None else block.labels
        for place in range(len(error)):
            row: dict[str, Any] = {"place": start + place}
            if told is not None:
                row["label"] = int(told[place])
            self.rows.append(row | {n: float(values[place]) for n, values in columns.items()})

    def _likelihoods(
        self, block: Block, labels: "Tensor | None", start: int
    ) -> dict[str, "Tensor"]:
        from imgsynth.losses import bits_per_dimension

        real = block.images.to(self.trained.device)
        found = bounds(
            self.method, real, labels, num_samples=self.given.num_samples, seed=0, start=start
        )
        log = found.log_likelihood
        columns = {"elbo": found.elbo, "log_likelihood": log, "kl": found.kl}
        self.is_discrete &= lie_on_levels(block.images, self.method.likelihood.levels)
        columns["bpd"] = bits_per_dimension(log, real[0].numel())
        return columns | {"anomaly_score": -log}

    def _remember(self, lines: list["Tensor"], start: int) -> None:
        """Keep what the sheets show: the first images, and the most and least anomalous."""
        import torch

        missing = _COLUMNS * _ROWS - (len(self.first[0]) if self.first else 0)
        if missing > 0:
            parts = [line[:missing] for line in lines]
            pairs = zip(self.first, parts, strict=True) if self.first else ()
            self.first = [torch.cat(pair) for pair in pairs] or parts
        rows = self.rows[start:]
        new = [
            _Seen(row.get("anomaly_score", row["mse"]), row["place"], stack)
            for row, stack in zip(rows, torch.stack(lines, 1), strict=True)
        ]
        most, least = self.extremes
        self.extremes = (
            _first(sorted([*most, *new], key=lambda seen: (-seen.score, seen.place))),
            _first(sorted([*least, *new], key=lambda seen: (seen.score, seen.place))),
        )

    def _walks(self, lines: list["Tensor"], labels: "Tensor | None") -> dict[str, "Tensor"]:
        """Return the sheets of what latents do, by name, of a method that has such latents."""
        from imgsynth.methods.latent_space import LatentSpace

        if not isinstance(self.method, LatentSpace):
            return {}
        seen = lines[-2].to(self.trained.device)
        walks = {"traversal": self.method.traversal_sheet(seen, labels)}
        if len(seen) > 1:
            walks["interpolation"] = self.method.interpolation_sheet(seen, labels)
        return walks

    def _sheet(self, lines: Iterable["Tensor"]) -> "Tensor":
        """Return a grid of rows of the first line, each above the same of the others."""
        import torch

        from imgsynth.images import grid
        from imgsynth.methods.sampler import shown

        lines = list(lines)
        columns = min(_COLUMNS, len(lines[0]))
        num = columns * (len(lines[0]) // columns)
        parts = zip(*(torch.split(line[:num], columns) for line in lines), strict=True)
        return grid(shown(torch.cat([row for part in parts for row in part])), columns=columns)

    def _anomalies(self) -> "Tensor":
        import torch

        num = min(_COLUMNS, max(1, len(self.rows) // 2))
        sides = [side[:num] for side in self.extremes[: len(self.rows)]]  # one has no opposite
        stacks = [torch.stack([seen.lines for seen in side], 1) for side in sides]
        return self._sheet(torch.cat(stacks, 1))

    def _table(self, files: list[str]) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            place = row["place"]
            named: dict[str, Any] = {"place": place, "image": files[place]}
            if self.images.sources is not None:
                named["source"] = self.images.sources[place]
            numbers = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            if not self.is_discrete:
                numbers.pop("bpd", None)
            yield named | numbers

    def _text(self) -> dict[str, str]:
        from imgsynth.describe import class_path

        return {
            "Software": "imgsynth",
            "Method": class_path(type(self.method)),
            "Images seen": str(self.method.images_seen),
            "Weights": self.trained.weights,
        }


def _first(seen: list[_Seen]) -> list[_Seen]:
    # Copied: a view would keep its whole block.
    return [each._replace(lines=each.lines.clone()) for each in seen[:_COLUMNS]]


def _mse(a: "Tensor", b: "Tensor") -> "Tensor":
    return (a - b).square().flatten(1).mean(1)


def _psnr(error: "Tensor") -> "Tensor":
    """Return dB, for intensities from -1 to 1."""
    return 10 * (4 / error.clamp_min(1e-10)).log10()


def _write_table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a table, whole or not at all."""
    rows = list(rows)
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")
    part.replace(path)


# -- what is said ---------------------------------------------------------------------------------


def _summary(
    trained: Trained,
    images: Images,
    found: _Result,
    files: list[str],
    given: argparse.Namespace,
) -> str:
    lines = [trained.title, f"{images.what}{', corrupted' if given.corrupt else ''}", ""]
    for name, meaning in _MEANINGS.items():
        if name in found.rows[0] and (name != "bpd" or found.is_discrete):
            mean = _mean(found.rows, name)
            lines.append(
                f"  {name:<15}{_number(mean):>10}  {meaning.format(num=given.num_samples)}"
            )
    if "elbo" in found.rows[0] and not found.is_discrete:
        levels = trained.method.likelihood.levels
        lines.append(
            f"  (cross-entropies, no likelihoods: the images have other values than {levels} "
            "levels)"
        )
    if _can_restore(trained.method) and not given.corrupt:
        lines.append("  (the model learned to restore corrupted images: --corrupt shows that)")
    return "\n".join([*lines, "", *_anomalous(found, files, images)])


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    total: float = sum(row[name] for row in rows)
    return total / len(rows)


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _anomalous(found: _Result, files: list[str], images: Images) -> Iterator[str]:
    """Yield the images that stand out, and what that means."""
    name = found.scored
    mean = _mean(found.rows, name)
    what = "-log P(x) in nats" if name == "anomaly_score" else "the error of reconstruction"
    yield f"Most anomalous by {name}, {what} (mean of all {_number(mean)}):"
    ordered = sorted(found.rows, key=lambda row: (-row[name], row["place"]))
    for row in ordered[:_MOST_NAMED]:
        shown = files[row["place"]]
        if images.sources is not None:
            shown = images.sources[row["place"]]
        label = f"  label {row['label']}" if "label" in row else ""
        yield f"  {printable(shown)}{label}  {_number(row[name])}"
    if name == "anomaly_score":
        yield "High: improbable under this model. Smooth, dark or empty images score low whatever"
        yield "they show, so compare with the scores of held-out images of the same kind only."
    else:
        yield "High: the model cannot draw what it shows. Images rich in detail score high, too, so"
        yield "compare with the errors of held-out images of the same kind only."
