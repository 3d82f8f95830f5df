"""Look at a folder of images before training on it."""

import argparse
import json
import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from imgsynth.cli.arguments import Parser
from imgsynth.cli.errors import UsageError, did_you_mean, nearest

if TYPE_CHECKING:
    from imgsynth.data.check import Duplicates, Report

_WIDTH = 100
_MOST_LINES = 36
_MOST_BELOW, _FEWEST_BELOW = 11, 4  # lines below a finding
_MOST_CLASSES = 8


def check_data(argv: list[str]) -> int:
    """Report what a folder is like and what has to be mended: ``imgsynth check-data``.

    Args:
        argv: What follows the command.

    Returns:
        The exit code: 0, or 1 if something needs attention.

    Raises:
        UsageError: If the command line is wrong.
    """
    given = _parser().parse([_underscored(word) for word in argv])
    options = _options(given)
    root = _folder(given.path)
    sheet = _sheet(given.sheet, root)

    from imgsynth.data import ImageFolder
    from imgsynth.data.check import check
    from imgsynth.data.contact_sheet import contact_sheet
    from imgsynth.data.scan import scan
    from imgsynth.images import save_png

    data = ImageFolder(root, **options)
    listing = scan(root)
    organisation, problem = None, ""
    try:
        organisation = data.organise(listing)
    except ValueError as error:  # a finding like the others
        problem = str(error)
    report = check(listing, data.rule, organisation, problem, data.unusable == "skip")
    command = _command(given.path, options, report)
    written = None
    try:
        if sheet is not None and len(report.broken) < report.num_images:
            picture = contact_sheet(listing, data.rule, organisation, report.broken)
            save_png(sheet, picture, {"Software": "imgsynth"})
            written = sheet
    finally:  # whatever becomes of the sheet: looking took long
        text = (_json if given.json else _text)(report, command, written)
        print(text.encode(errors="surrogateescape").decode(errors="replace"))
    return 0 if report.is_good else 1


# -- the command line -----------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(
        "check-data",
        "Look at every image of a folder before training on it: sizes and formats, splits and\n"
        "classes, broken files, duplicates, and what --size and --fit would cut away. Exits with\n"
        "1 if something should be mended first. Options are those of `imgsynth help ImageFolder`.",
        "examples:\n  imgsynth check-data photos --size 64\n"
        "  imgsynth check-data photos --size 64 --fit pad --sheet sheets/photos.png\n"
        "  imgsynth check-data photos --table labels.csv --json --sheet none",
    )
    parser.add_argument("path", metavar="PATH", help="the folder")
    parser.add_argument("--size", metavar="N", help="pixels a side, or [height,width]")
    parser.add_argument(
        "--fit", choices=("crop", "pad", "stretch", "cut"), help="how images get there (crop)"
    )
    parser.add_argument(
        "--interpolation", choices=("bilinear", "bicubic"), help="how pixels are resized (bilinear)"
    )
    parser.add_argument(
        "--unusable",
        choices=("refuse", "skip"),
        help="skip: broken files need no attention (refuse)",
    )
    parser.add_argument("--channels", metavar="N", type=int, help="1 gray, 3 RGB, 4 with alpha")
    parser.add_argument("--bits", type=int, choices=(8, 16), help="bits a channel")
    parser.add_argument(
        "--background", metavar="N", type=int, help="gray behind transparent pixels (255)"
    )
    parser.add_argument("--table", metavar="FILE", help="labels and splits, .csv or .jsonl")
    parser.add_argument(
        "--class_depth", metavar="N", type=int, help="how many folders name the class"
    )
    parser.add_argument("--class_names", metavar="LIST", help="classes in order, '[cat,dog]'")
    parser.add_argument(
        "--split_by", metavar="MAP", help="folder or list of each split, '{test: test.txt}'"
    )
    parser.add_argument("--test_fraction", metavar="F", type=float, help="part to test on (0)")
    parser.add_argument("--val_fraction", metavar="F", type=float, help="part to validate on (0)")
    parser.add_argument(
        "--allow_unlisted", action="store_true", help="leave out images without a row in the table"
    )
    parser.add_argument(
        "--sheet", metavar="FILE", help="the contact sheet, or none (check-NAME.png)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _underscored(word: str) -> str:
    """Return ``--class-depth`` as ``--class_depth``; both are understood."""
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word


def _options(given: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ImageFolder that were given."""
    options = {
        name: value
        for name, value in vars(given).items()
        if name not in {"path", "sheet", "json"} and value is not None and value is not False
    }
    if "size" in options:
        options["size"] = _size(options["size"])
    if "class_names" in options:
        options["class_names"] = _names(options["class_names"])
    if "split_by" in options:
        options["split_by"] = _parts(options["split_by"])
    return options


def _size(text: str) -> int | tuple[int, int]:
    match = re.fullmatch(r"(\d+)|\[?(\d+)[,x] *(\d+)\]?", text.strip())
    if match is None:
        raise UsageError(
            f"--size expects whole numbers, got {text!r}.", "Expected 64, or '[48,64]' for 48x64."
        )
    side, height, width = match.groups()
    return int(side) if side else (int(height), int(width))


def _names(text: str) -> list[str]:
    names = _yaml(text)
    if not isinstance(names, list) or not names:
        raise UsageError(f"--class_names got {text!r}.", "Expected a list, such as '[cat,dog]'.")
    return [str(name) for name in names]


def _parts(text: str) -> dict[str, str]:
    parts = _yaml(text)
    if not isinstance(parts, dict) or not parts or None in parts.values():
        raise UsageError(
            f"--split_by got {text!r}.", "Expected a mapping, such as '{test: test.txt}'."
        )
    return {str(split): str(part) for split, part in parts.items()}


def _yaml(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _folder(path: str) -> Path:
    root = Path(path).expanduser()
    if root.is_dir():
        return root
    parent = root.parent if root.parent.is_dir() else Path()
    names = [p.name for p in parent.iterdir() if p.is_dir()]
    what = "is a file" if root.exists() else "does not exist"
    raise UsageError(
        f"The folder {path!r} {what}.",
        "Expected a folder of images.",
        did_you_mean(str(parent / name) for name in nearest(root.name, names, 2)),
    )


def _sheet(given: str | None, root: Path) -> Path | None:
    """Return where the contact sheet goes: not among the images, where it would be one of them."""
    if given == "none":
        return None
    sheet = Path(given or f"check-{root.resolve().name}.png").expanduser()
    if given is None and sheet.resolve().is_relative_to(root.resolve()):
        sheet = root.resolve().parent / sheet.name
    if sheet.suffix.lower() != ".png":
        raise UsageError(
            f"--sheet {given!r}: the sheet is a PNG file.", "Expected --sheet FILE.png or none."
        )
    if sheet.resolve().is_relative_to(root.resolve()):
        raise UsageError(
            f"The contact sheet {str(sheet)!r} would lie among the images and become one of them.",
            "Expected --sheet FILE with a file outside of the folder, or --sheet none.",
        )
    return sheet


def _command(path: str, options: Mapping[str, Any], report: "Report") -> str:
    """Return what loads the folder; empty if nothing in it can be used."""
    if report.num_usable == 0 or report.problem:
        return ""
    words = ["--data", "ImageFolder", "--data.root", path]
    for name, value in {**options, **report.advice}.items():
        words += [f"--data.{name}", _written(value)]
    return shlex.join(words)


def _written(value: object) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# -- the report -----------------------------------------------------------------------------------


def _json(report: "Report", command: str, sheet: Path | None) -> str:
    content = asdict(report) | {
        "num_usable": report.num_usable,
        "imbalance": report.imbalance,
        "findings": [asdict(finding) for finding in report.findings],
        "good": report.is_good,
        "command": command,
        "sheet": None if sheet is None else str(sheet),
    }
    return json.dumps(content, indent=2)


def _text(report: "Report", command: str, sheet: Path | None) -> str:
    top = [_title(report), "", *(_figure(name, text) for name, text in _figures(report) if text)]
    end = [""]
    if command:
        end.append(f"to load it: {command}")
    if sheet is not None:
        end.append(f"contact sheet: {sheet}")
    end.append(f"verdict: {_verdict(report)}")
    found = report.findings
    titles = 2 * len({finding.serious for finding in found})
    fixed = "\n".join([*top, *end]).count("\n") + 1 + len(found) + titles
    return "\n".join([*top, *_findings(report, _MOST_LINES - fixed), *end])


def _figure(name: str, text: str) -> str:
    return textwrap.fill(
        f"  {name:10}{text}",
        _WIDTH,
        subsequent_indent=" " * 12,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _findings(report: "Report", most: int) -> Iterator[str]:
    """Yield what was found, with about so many lines of names below it."""
    lines = {finding.kind: _lines(report, finding.kind) for finding in report.findings}
    shares: dict[str, int] = {}
    for done, kind in enumerate(sorted(lines, key=lambda kind: len(lines[kind]))):
        share = (most - sum(shares.values())) // (len(lines) - done)
        shares[kind] = min(len(lines[kind]), max(_FEWEST_BELOW, min(_MOST_BELOW, share)))
    for serious, title in ((True, "needs attention"), (False, "worth knowing")):
        findings = [finding for finding in report.findings if finding.serious == serious]
        if findings:
            yield f"\n{title}"
        for finding in findings:
            yield f"  {finding.text}"
            yield from _cut(lines[finding.kind], shares[finding.kind])


def _title(report: "Report") -> str:
    parts = [_count(report.num_images, "image")]
    if report.num_left_out:
        parts.append(f"{report.num_left_out:,} in no split")
    if report.others:
        kinds = ", ".join(f"{suffix or 'no suffix'} {n:,}" for suffix, n in report.others.items())
        parts.append(f"{_count(sum(report.others.values()), 'other file')} ({kinds})")
    if empty := report.empty_folders:
        parts.append(f"{_count(len(empty), 'folder')} without images ({_few(empty)})")
    return f"{report.root}: {', '.join(parts)}"


def _figures(report: "Report") -> Iterator[tuple[str, str]]:
    yield "splits", _listed(report.splits)
    yield "classes", _classes(report)
    sizes = report.sizes
    if sizes is not None:
        smallest, median, largest = map(_by, (sizes.smallest, sizes.median, sizes.largest))
        if sizes.num_distinct == 1:
            yield "size", f"all {smallest} (height x width)"
        else:
            low, middle, high = (f"{ratio:.2f}" for ratio in sizes.aspect)
            yield (
                "size",
                (
                    f"{smallest} to {largest}, median {median} (height x width); "
                    f"{sizes.num_distinct:,} different"
                ),
            )
            yield "shape", f"width / height {low} to {high}, median {middle}"
    yield "format", _listed(report.formats)
    yield "pixels", _pixels(report)
    yield "rule", _effect(report)


def _classes(report: "Report") -> str:
    counts = {name: sum(by_split.values()) for name, by_split in report.classes.items()}
    if not counts:
        return ""
    ratio = report.imbalance
    text = f"{len(counts):,}"
    if ratio is not None:
        text += ", all alike" if ratio == 1 else f", the largest {ratio:.1f} times the smallest"
    if len(counts) <= _MOST_CLASSES:
        return f"{text}: {_listed(counts)}"
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return f"{text}: {_listed(dict(ordered[:3]))} ... {_listed(dict(ordered[-3:]))}"


def _pixels(report: "Report") -> str:
    if not report.channels:
        return ""
    channels = ", ".join(
        f"{_count(c, 'channel')} {num:,}" for c, num in sorted(report.channels.items())
    )
    bits = ", ".join(f"{b} bits {num:,}" for b, num in sorted(report.bits.items()))
    turned = f"; {report.rotated:,} turned by EXIF" if report.rotated else ""
    return f"{channels}; {bits}; stored as {_listed(report.modes)}{turned}"


def _effect(report: "Report") -> str:
    effect, size = report.effect, report.rule.size
    if effect is None or size is None:
        return "sizes are kept; --size says what images become"
    parts = [f"{report.rule.fit} to {_by(size)}"]
    if not effect.most_removed_file:
        parts.append("cuts nothing away")
    elif report.sizes is not None and report.sizes.num_distinct == 1:
        parts.append(f"cuts away {effect.removed:.0%} of each image")
    else:
        parts.append(
            f"cuts away {effect.removed:.0%} of an image (median), at most "
            f"{effect.most_removed:.0%} ({effect.most_removed_file})"
        )
    if effect.num_smaller:
        parts.append(f"{effect.num_smaller:,} smaller than that")
    if effect.num_enlarged:
        parts.append(
            f"{effect.num_enlarged:,} enlarged, at most {effect.most_enlarged:.3g} times "
            f"({effect.most_enlarged_file})"
        )
    return "; ".join(parts)


def _lines(report: "Report", kind: str) -> list[str]:
    """Return a line for each file that a finding is about."""
    if kind in {"broken", "unfit"}:
        reasons = report.broken if kind == "broken" else report.unfit
        return [f"{name}  {reason}" for name, reason in reasons.items()]
    if kind == "constant":
        return list(report.constant)
    return [_group(group) for group in report.duplicates if group.kind == kind]


def _group(group: "Duplicates") -> str:
    """Return a line of files, with one of each split or class first."""
    places = {"leak": group.splits, "conflict": group.classes}.get(group.kind, ())
    first = {place: file for file, place in reversed(list(zip(group.files, places, strict=False)))}
    named = [f"{file} ({place})" for place, file in sorted(first.items())]
    others = [file for file in group.files if file not in first.values()]
    same = "bytes" if group.same_bytes else "pixels"
    return f"{' = '.join(_some([*named, *others]))}  same {same}"


def _some(names: Sequence[str]) -> list[str]:
    return [*names[:3], *([f"... ({len(names) - 3:,} more)"] if len(names) > 3 else [])]


def _cut(lines: Sequence[str], most: int) -> Iterator[str]:
    """Yield lines, at most so many; the last one says how many are left out."""
    shown = len(lines) if len(lines) <= most else most - 1
    yield from (f"    {line}" for line in lines[:shown])
    if shown < len(lines):
        yield f"    ... and {len(lines) - shown:,} more (--json names all)"


def _verdict(report: "Report") -> str:
    num = sum(finding.serious for finding in report.findings)
    if not num:
        return "nothing to mend."
    return f"{num} {'thing needs' if num == 1 else 'things need'} attention."


def _count(num: int, noun: str) -> str:
    return f"{num:,} {noun}{'' if num == 1 else 's'}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {num:,}" for name, num in counts.items())


def _few(names: Iterable[str]) -> str:
    return ", ".join(_some(list(names)))


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
