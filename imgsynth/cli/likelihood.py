"""How probable a trained model says held-out images are."""

import hashlib
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from imgsynth.cli.arguments import Parser
from imgsynth.cli.errors import UsageError
from imgsynth.cli.inputs import BLOCK, Images, held_out
from imgsynth.cli.trained import Trained, add_options, data_options, methods_that_are, open_run

if TYPE_CHECKING:
    from torch import Tensor

LATENTS = 10
"""Latents an image by which the reconstruction term of the ELBO is estimated."""

_PIXELS = 2**22  # decoded at a time, unless --chunk says otherwise


def likelihood(argv: list[str]) -> int:
    """Estimate the log-likelihood of held-out images: ``imgsynth likelihood``.

    Args:
        argv: What follows the command.

    Returns:
        The exit code.

    Raises:
        UsageError: If the command line is wrong, or the model has no likelihood.
    """
    words, changes = data_options(argv, "likelihood")
    given = _parser().parse(words)
    for name in ("num_samples", "seeds", "chunk"):
        at_least_one(f"--{name.replace('_', '-')}", getattr(given, name))
    trained = open_run(given, changes, needs_data=True)

    from imgsynth.types import parse_count

    num = None if given.num is None else parse_count(given.num, "--num")
    at_least_one("--num", num)
    require_likelihood(trained)
    images = held_out(trained, given.split, num)
    (trained.folder / "evaluations").mkdir(exist_ok=True)  # before it costs anything
    found = _measure(trained, images, given.num_samples, given.seeds, given.chunk)
    report = _report(trained, images, found, given.num_samples)
    print(_table(trained, images, report))
    print(f"\nWritten to {_write(report, trained.folder)}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "likelihood",
        "Estimate how probable a model says held-out images are, in nats an image and bits per\n"
        "dimension. The ELBO, which a VAE is trained to maximise, is a lower bound on log P(x);\n"
        "the importance-weighted bound (IWAE) averages over many latents an image and is closer\n"
        "to it: 50 are usual, 5000 where the last tenth of a nat counts. All images of the split\n"
        "are taken unless --num says otherwise: a part of them can be easier by a nat. Numbers of\n"
        "equal protocol may be compared, others may not.",
        "examples:\n  imgsynth likelihood runs/vae\n"
        "  imgsynth likelihood runs/vae --num-samples 500 --checkpoint best\n"
        "  imgsynth likelihood runs/vae --data.binarise true",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run, or one of its checkpoints")
    add("--num-samples", metavar="K", type=int, default=50, help="latents an image (50)")
    add("--split", metavar="S", help="which images (test, or val where there is none)")
    add("--num", metavar="N", help="the first N images only")
    add("--seeds", metavar="S", type=int, default=1,
        help="how often to draw latents; the mean and range are\nshown (1)")  # fmt: skip
    add("--chunk", metavar="N", type=int,
        help="images decoded at a time; decides memory and speed only")  # fmt: skip
    add_options(parser)
    return parser


def at_least_one(option: str, number: int | None) -> None:
    """Refuse a count below 1.

    Raises:
        UsageError: If it is.
    """
    if number is not None and number < 1:
        raise UsageError(f"{option} must be at least 1, got {number}.")


def has_likelihood(method: object) -> bool:
    """Say whether a method can tell how probable an image is."""
    from imgsynth.methods import VAE

    return isinstance(method, VAE)


def require_likelihood(trained: Trained) -> None:
    """Refuse a method that cannot say how probable an image is.

    Raises:
        UsageError: If it cannot.
    """
    if not has_likelihood(trained.method):
        raise UsageError(
            f"{type(trained.method).__name__} has no likelihood: it does not say how probable an "
            "image is.",
            f"Expected a run of {methods_that_are('VAE')}.",
            "`imgsynth evaluate` scores generated images of other methods.",
        )


# -- the estimate ---------------------------------------------------------------------------------


class Bounds(NamedTuple):
    """What a model says of some images, in nats.

    Attributes:
        log_likelihood: ``(B,)``, the importance-weighted bound.
        reconstruction: ``(B,)``, the expected log probability of the image, given a latent of
            its posterior.
        kl: ``(B,)``, what the latents cost, in closed form.
        mu: ``(B, latent_dim)``, the posterior's mean.
    """

    log_likelihood: "Tensor"
    reconstruction: "Tensor"
    kl: "Tensor"
    mu: "Tensor"

    @property
    def elbo(self) -> "Tensor":
        """The evidence lower bound, ``(B,)``."""
        return self.reconstruction - self.kl


def bounds(
    method: Any,  # noqa: ANN401
    images: "Tensor",
    labels: "Tensor | None",
    *,
    num_samples: int,
    seed: int,
    start: int,
    chunk: int | None = None,
) -> Bounds:
    """Estimate the log-likelihood of a block of images.

    A latent depends on the seed, the place of the image and the number of the latent alone:
    neither on ``chunk`` nor on how many images there are.

    Args:
        method: A VAE.
        images: ``(B, C, H, W)`` in [-1, 1], at most :data:`BLOCK`.
        labels: ``(B,)`` int64, exactly if the method is conditional.
        num_samples: Latents an image for the importance-weighted bound.
        seed: Chooses them.
        start: The place of the first image.
        chunk: Images decoded at a time; None chooses by their size.
    """
    import torch

    from imgsynth import seeding

    seed = seeding.fold(seed, "block", start)
    found = method.log_likelihood(images, labels, num_samples=num_samples, seed=seed, chunk=chunk)
    size = (LATENTS, BLOCK, method.latent_dim)
    noise = torch.randn(size, generator=seeding.generator(seed, "elbo")).to(images.device)
    at_once = min(BLOCK, chunk or max(1, _PIXELS // images[0].numel()))
    parts = []
    with method.evaluating():
        for place in range(0, len(images), at_once):
            part = images[place : place + at_once]
            given = None if labels is None else labels[place : place + at_once]
            mu, logvar = method.posterior(part, given)
            log_mass = [
                method.likelihood.log_mass(
                    part, method.outputs(mu + (0.5 * logvar).exp() * drawn[: len(part)], given)
                )
                for drawn in noise[:, place : place + at_once]
            ]
            parts.append((torch.stack(log_mass).mean(0), method.divergence(mu, logvar).sum(1), mu))
    reconstruction, kl, mu = (torch.cat(t) for t in zip(*parts, strict=True))
    return Bounds(found, reconstruction, kl, mu)


def lie_on_levels(images: "Tensor", levels: int) -> bool:
    """Say whether images in [-1, 1] have no other values than ``levels`` even steps.

    Only of such images a likelihood gives probabilities.
    """
    from imgsynth.likelihoods import off_levels

    return not off_levels(images, levels)


class _Found(NamedTuple):
    """Numbers of each image: float64 ``(N,)``, for each seed one of ``(S, N)``."""

    log_likelihood: "Tensor"
    reconstruction: "Tensor"
    kl: "Tensor"
    active: int
    values: int
    is_discrete: bool


def _measure(
    trained: Trained, images: Images, num_samples: int, seeds: int, chunk: int | None
) -> _Found:
    import torch
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    from imgsynth.methods.collapse import ACTIVE

    method = trained.method
    table = torch.empty(3, seeds, images.num, dtype=torch.float64)
    sums = torch.zeros(2, method.latent_dim, dtype=torch.float64)
    start, is_discrete, values = 0, True, 1
    with tqdm(total=images.num, unit=" images", leave=False, disable=None) as bar:
        for block in images.blocks():
            real = block.images.to(trained.device)
            labels = given_labels(method, block.labels, trained.device)
            is_discrete &= lie_on_levels(block.images, method.likelihood.levels)
            values = real[0].numel()
            end = start + len(real)
            for seed in range(seeds):
                found = bounds(
                    method, real, labels,
                    num_samples=num_samples, seed=seed, start=start, chunk=chunk,
                )  # fmt: skip
                for row, part in enumerate(found[:3]):
                    table[row, seed, start:end] = part.double().cpu()
            mu = found.mu.double().cpu()
            sums += torch.stack([mu.sum(0), mu.square().sum(0)])
            start = end
            bar.update(len(real))
    means = sums / images.num
    active = int((means[1] - means[0].square() > ACTIVE).sum())
    return _Found(table[0], table[1], table[2], active, values, is_discrete)


def given_labels(method: Any, labels: "Tensor | None", device: str) -> "Tensor | None":  # noqa: ANN401
    """Return the labels that a method takes: none if it is unconditional.

    Raises:
        UsageError: If it takes labels, and there are none.
    """
    if not method.num_classes:
        return None
    if labels is None:
        raise UsageError(
            f"The model is conditional on {method.num_classes} classes, but the data has no "
            "labels.",
            "Expected the data that it was trained on.",
        )
    return labels.to(device)


# -- the report -----------------------------------------------------------------------------------


def _report(trained: Trained, images: Images, found: _Found, num_samples: int) -> dict[str, Any]:
    from imgsynth.describe import hash_of
    from imgsynth.losses import bits_per_dimension

    method = trained.method
    shared = {
        "probability": _measure_of(method, found.is_discrete),
        "given": "label" if method.num_classes else "nothing",
        "real": images.real,
        "weights": trained.weights,
    }
    named = {
        "elbo": ("ELBO", LATENTS, found.reconstruction - found.kl),
        f"iwae{num_samples}": ("importance-weighted", num_samples, found.log_likelihood),
    }
    scores = {}
    for name, (bound, latents, table) in named.items():
        protocol = {"bound": bound, "latents": latents, **shared}
        by_seed = table.mean(1)
        bits = bits_per_dimension(table.mean(), found.values).item()
        scores[name] = {
            "mean": table.mean().item(),
            "standard_error": _standard_error(table.mean(0)),
            "values": by_seed.tolist(),
            "bits_per_dimension": bits if found.is_discrete else None,
            "better": "higher",
            "protocol": {"hash": hash_of(protocol), **protocol},
        }
    parts = {"reconstruction": found.reconstruction, "kl": found.kl}
    return {
        "scores": scores,
        "parts": {name: table.mean().item() for name, table in parts.items()},
        "active_units": found.active,
        "latent_dim": method.latent_dim,
        "values_an_image": found.values,
        "images": images.what,
        "provenance": trained.provenance(len(found.kl)),
    }


def _measure_of(method: Any, is_discrete: bool) -> str:  # noqa: ANN401
    from imgsynth.methods.vae import measure_of

    levels = method.likelihood.levels
    if levels == 2 or is_discrete:
        return measure_of(method.likelihood, is_discrete)
    return f"none: the images are not of {levels} levels"


def _standard_error(values: "Tensor") -> float | None:
    return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else None


def _table(trained: Trained, images: Images, report: dict[str, Any]) -> str:
    method, scores = trained.method, report["scores"]
    seeds = len(report["provenance"]["seeds"])
    given = ", given their labels" if method.num_classes else ""
    lines = [
        trained.title,
        f"{images.what}{given}",
        f"{report['values_an_image']:,} values an image, {method.likelihood.levels:,} levels each",
        "",
        _row("nats an image", "mean", "std. error", _seeds(seeds), "bpd") + "  protocol",
    ]
    for name, row in scores.items():
        spread = f"{min(row['values']):.2f} to {max(row['values']):.2f}" if seeds > 1 else "-"
        error, bits = _number(row["standard_error"]), _number(row["bits_per_dimension"], 4)
        cells = _row(name, _number(row["mean"]), error, spread, bits)
        lines.append(f"{cells}  {row['protocol']['hash']}")
    parts = report["parts"]
    lines += [
        "",
        f"The ELBO's parts: reconstruction {parts['reconstruction']:.2f} minus KL "
        f"{parts['kl']:.2f}; {report['active_units']} of {method.latent_dim} latents are active.",
        "",
        *_meaning(trained, report),
    ]
    return "\n".join(lines)


def _seeds(num: int) -> str:
    return f"range, {num} seeds" if num > 1 else "range"


def _row(name: str, *cells: str) -> str:
    return "{:<14}{:>11}{:>13}{:>22}{:>9}".format(name, *cells)


def _meaning(trained: Trained, report: dict[str, Any]) -> list[str]:
    """Say what the numbers are, and what they are not."""
    corrupted = trained.method.corruption is not None
    name = list(report["scores"])[1]
    if report["scores"]["elbo"]["bits_per_dimension"] is None:
        told = [_no_likelihood(trained)]
    else:
        told = [
            f"Both are lower bounds on log P(x), the log probability of an image: higher is better"
            f", and {name} is the closer one. bpd is the same in bits for each value of an image; "
            "lower is better. Other models, of any kind, compare by it if their protocol is equal: "
            "the same images, levels, bound and number of latents."
        ]
    if corrupted:
        told.append(
            "The encoder learned from corrupted images and sees clean ones here: the bounds hold, "
            "but are less close."
        )
    return [textwrap.fill(text, 100) for text in told]


def _no_likelihood(trained: Trained) -> str:
    levels = trained.method.likelihood.levels
    kind = type(trained.method.likelihood).__name__
    if levels > 2:
        return (
            f"No likelihoods: {kind} gives probabilities of images of {levels:,} levels a value, "
            "and these have others. There are no bits per dimension. `--data.bits 8` makes images "
            "of 256 levels, where the data has it."
        )
    return (
        f"No likelihoods: {kind} gives probabilities of black and white images, and these are "
        "gray. The numbers are cross-entropies: they compare models of the same images, but there "
        "are no bits per dimension. `--data.binarise true` draws black and white images from them "
        "(held-out splits only, always the same ones)."
    )


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _write(report: dict[str, Any], folder: Path) -> Path:
    """Write what was found beside the run; the same measurement overwrites itself."""
    facts = report["provenance"]
    told = [facts[key] for key in ("seeds", "device", "precision", "checkpoint")]
    told += sorted(row["protocol"]["hash"] for row in report["scores"].values())
    short = hashlib.blake2b(json.dumps(told).encode(), digest_size=4).hexdigest()
    name = f"likelihood-images-{facts['images_seen']:012d}-{short}.json"
    out = folder / "evaluations" / name
    part = out.with_name(f".{out.name}.part")
    part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    part.replace(out)
    return out
