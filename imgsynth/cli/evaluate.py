"""Score a trained model, by the same digits as during its training."""

import hashlib
import json
import textwrap
from pathlib import Path
from typing import Any

from imgsynth.cli import runs
from imgsynth.cli.arguments import Parser
from imgsynth.cli.errors import UsageError
from imgsynth.cli.trained import changes_of, checkpoint_of, provenance

_OURS = ("metrics", "num", "seeds", "protocol", "weights", "split")
_FEWEST_SEEDS = 3


def evaluate(argv: list[str]) -> int:
    """Score a model: ``imgsynth evaluate``; errors name its options, not those of ``fit``.

    Args:
        argv: What follows the command.

    Returns:
        The exit code.

    Raises:
        UsageError: If the command line is wrong, or there is no such run.
    """
    try:
        return _evaluate(argv)
    except (ValueError, FileNotFoundError) as error:
        lines = error.lines if isinstance(error, UsageError) else [str(error)]
        if not any("--evaluate." in line for line in lines):
            raise
        raise UsageError(*(line.replace("--evaluate.", "--") for line in lines)) from error


def _evaluate(argv: list[str]) -> int:
    """Score a model.

    Args:
        argv: What follows the command.

    Returns:
        The exit code.

    Raises:
        UsageError: If the command line is wrong, or there is no such run.
    """
    if "--protocols" in argv:
        from imgsynth.metrics.presets import PRESETS

        for preset in PRESETS.values():
            for line in preset.text().splitlines():
                print(textwrap.fill(line, 100, subsequent_indent="    "))
            print()
        return 0
    words, changes = changes_of(argv)
    given = _parser().parse(words)
    path = runs.find_run(given.run)
    source = runs.config_of(path)
    changes += [(f"evaluate.{n}", v) for n in _OURS if (v := getattr(given, n)) is not None]
    from imgsynth.cli.sample import device_name, trusted

    device = device_name(given.device)

    import torch

    import imgsynth
    from imgsynth.callbacks import quiet
    from imgsynth.callbacks.evaluate import JUDGE, Settings
    from imgsynth.cli import parser
    from imgsynth.cli.fit import make_working_directory_importable
    from imgsynth.cli.train import evaluates

    make_working_directory_importable()
    quiet()
    config = parser.parse([source], changes)
    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    checkpoint = checkpoint_of(path, given.checkpoint)
    before = parser.parse([source], [])
    typed = parser.typed(config)
    data = parser.make(typed.data)
    method = imgsynth.load(checkpoint, map_location=device, trusted=tuple(trusted(path)))
    options = parser.make(typed.evaluate)
    options.pop("every")
    seeds = _seeds(options.pop("seeds"), given.seeds is not None or evaluates(before))
    if given.weights is None and _inception(options) != _inception(before["evaluate"]):
        options["weights"] = None  # the run's own are of another network
    settings = Settings(**options)
    (runs.folder_of(path) / "evaluations").mkdir(exist_ok=True)  # before it costs anything
    data.prepare_data()
    data.setup()
    judge = runs.folder_of(path) / JUDGE if given.weights is None else None
    evaluation = settings.prepare(data, method, torch.device(device), judge)
    result = evaluation.score(method, seeds=range(seeds), ema=not given.raw, matched=True)
    report = _report(evaluation, result, config)
    report["provenance"] = provenance(method, checkpoint, device, result.seeds)
    print(_table(report, evaluation))
    warning = evaluation.alarm(result)
    if warning is not None:
        print(f"\n{warning}")
    out = _write(report, runs.folder_of(path))
    print(f"\nWritten to {out}")
    return 0


def _seeds(configured: int, is_said: bool) -> int:
    """Return how many sets of images there will be."""
    if configured < 1:
        raise UsageError(f"--seeds must be at least 1, got {configured}.")
    return configured if is_said else _FEWEST_SEEDS


def _inception(options: dict[str, Any]) -> bool:
    """Say whether scores are asked for that need the Inception network."""
    from imgsynth.metrics import scores

    metrics = options["metrics"]
    names = scores.parse(metrics) if metrics is not None else []
    return options["protocol"] is not None or scores.asks_for_inception(names)


def _parser() -> Parser:
    parser = Parser(
        "evaluate",
        "Score a trained model: without further options as it was scored in training (the same\n"
        "digits, on the same machine), else by fd, cls_score, precision and recall, judged by a\n"
        "classifier of the data's own labels. Each score is shown with its protocol (what it was\n"
        "measured by) and with what real images get in place of generated ones. Scores of equal\n"
        "protocols may be compared, others may not.",
        "examples:\n  imgsynth evaluate runs/demo\n"
        "  imgsynth evaluate runs/demo --checkpoint best --seeds 5\n"
        "  imgsynth evaluate runs/cifar --metrics fid,is,kid --protocol clean-fid\n"
        "  imgsynth evaluate --protocols",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run, or one of its checkpoints")
    add("--checkpoint", metavar="C", help="best, last or a file (last)")
    add("--metrics", metavar="M", help="names with commas; `imgsynth help Evaluate` lists them")
    add("--num", metavar="N", help="images to generate, such as 2k (as the protocol says)")
    add("--seeds", metavar="S", help="how many sets of images; the mean and range are shown")
    add("--protocol", metavar="P", help="which tool's numbers to reproduce; see --protocols")
    add("--protocols", action="store_true", help="say what each protocol stands for")
    add("--weights", metavar="FILE", help="the Inception weights for fid, is, kid; for fd and the "
        "like\nthe judge.pt of another run")  # fmt: skip
    add("--split", metavar="S", help="the real images to compare with (train)")
    add("--raw", action="store_true", help="the live weights instead of the averaged ones")
    add("--device", metavar="D", default="auto", help="cpu, cuda, cuda:1, mps (auto)")
    add("--extractor", metavar="CLASS", help="another network: TorchvisionExtractor, ...;\n"
        "--extractor.OPTION VALUE for its options")  # fmt: skip
    return parser


def _report(evaluation: Any, result: Any, config: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    from imgsynth.metrics.scores import SCORES

    table = {}
    means = result.means()
    for name, protocol in result.protocols.items():
        low, high = result.range(name)
        table[name] = {
            "mean": means[name],
            "least": low,
            "greatest": high,
            "values": result.values[name],
            "real_images": evaluation.floor_of(protocol.score),
            "of_as_many": result.matched.get(protocol.score),
            "better": SCORES[protocol.score].better,
            "protocol": {"hash": protocol.hash, **protocol.as_dict()},
        }
    further = {n: v for n, v in means.items() if n not in table}
    return {"scores": table, "further": further, "data": config["data"]["class_path"]}


def _table(report: dict[str, Any], evaluation: Any) -> str:  # noqa: ANN401
    facts = report["provenance"]
    first = next(iter(report["scores"].values()))["protocol"]
    real, extractor = first["real"], first["extractor"]
    data = report["data"].rpartition(".")[2]
    word = "seeds" if len(facts["seeds"]) > 1 else "seed"
    seeds = f"{word} {', '.join(map(str, facts['seeds']))}"
    num = evaluation.num_held_out
    titles = ("score", "mean", "range", f"at {num:,}", f"real, {num:,}")
    lines = [
        f"{facts['checkpoint']}: {facts['images_seen']:,} images seen",
        f"{first['num_generated']:,} generated images ({first['weights']} weights, {seeds}) "
        f"against the {real['num']:,} real ones of {data}, split {real['split']}",
        f"Features: {extractor['name']} {extractor['weights']}{_reading(evaluation.extractor)}",
        "",
        "{:<14}{:>10}{:>20}{:>11}{:>13}  better  protocol".format(*titles),
    ]
    for name, row in report["scores"].items():
        low, high = _number(row["least"]), _number(row["greatest"])
        spread = f"{low} to {high}" if len(row["values"]) > 1 else "-"
        cells = (name, _number(row["mean"]), spread, _number(row["of_as_many"]))
        real_score = _number(row["real_images"]["score"])
        lines.append(
            "{:<14}{:>10}{:>20}{:>11}".format(*cells)
            + f"{real_score:>13}  {row['better']:<6}  {row['protocol']['hash']}"
        )
    lines += ["", f"real: {evaluation.floor_text()}"]
    return "\n".join(lines)


def _reading(extractor: Any) -> str:  # noqa: ANN401
    """Say how well a classifier reads held-out images."""
    accuracy = getattr(extractor, "accuracy", None)
    if accuracy is None:
        return ""
    num = extractor.num_heldout
    return f", which reads {accuracy:.1%} of {num:,} held-out images of {extractor.data} rightly"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"


def _write(report: dict[str, Any], folder: Path) -> Path:
    """Write what was found beside the run; the same evaluation overwrites itself."""
    facts = report["provenance"]
    told = [facts[key] for key in ("seeds", "device", "precision", "checkpoint")]
    told += sorted(row["protocol"]["hash"] for row in report["scores"].values())
    short = hashlib.blake2b(json.dumps(told).encode(), digest_size=4).hexdigest()
    images = report["provenance"]["images_seen"]
    out = folder / "evaluations" / f"images-{images:012d}-{short}.json"
    out.parent.mkdir(exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    part.replace(out)
    return out
