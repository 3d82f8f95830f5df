"""Images of a folder as they are, and as a rule makes them, on one sheet."""

import contextlib
import itertools
import unicodedata
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from imgsynth.data.decode import UnusableImage, decode
from imgsynth.data.organise import Organisation
from imgsynth.data.rule import Rule
from imgsynth.data.scan import Listing, spread

_MOST_SHOWN = 64
_COLUMNS = 8
_BOX = 128  # pixels of a whole image's longer side
_SMALL_BOX = 64  # of what becomes of it
_GAP = 8
_MARGIN = 16
_BLOCKS = 4  # from this factor on, enlarged images show their pixels
_PAPER = (236, 236, 236)
_INK = (64, 64, 64)
_LINE = (255, 176, 0)
_DARKENED = 0.3
_TEXT = 13  # pixels


@dataclass(frozen=True)
class _Cell:
    caption: str
    whole: Image.Image
    result: Image.Image | None


def contact_sheet(
    listing: Listing,
    rule: Rule,
    organisation: Organisation | None = None,
    leave_out: Container[str] = (),
) -> Tensor:
    """Draw up to 64 images, whole and as the rule makes them.

    They are taken evenly from the classes (from the folders where there are none) and evenly
    within each, always the same ones. What the rule cuts away is dark, with a line around the rest;
    below each is what becomes of it. Without a size only whole images are shown.

    Args:
        listing: The files.
        rule: What they are to become.
        organisation: Their splits and classes; None: they are not clear.
        leave_out: Names of files not to show, such as broken ones.

    Returns:
        ``(3, H, W)`` uint8.

    Raises:
        ValueError: If there is no image to show.
    """
    groups = _groups(listing, organisation, leave_out)
    cells: list[_Cell] = []
    for caption, place in _chosen(groups):
        with contextlib.suppress(UnusableImage):
            cells.append(_cell(caption, decode(listing.path(place)), rule))
    if not cells:
        raise ValueError(f"There is no image to show in {listing.root}.")
    columns = min(_COLUMNS, len(cells))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    num = sum(map(len, groups.values()))
    legend = f"{listing.root.resolve().name}: {len(cells):,} of {num:,} images.{_legend(rule)}"
    return _page([_strip(row, len(groups) > 1) for row in rows], legend)


def _groups(
    listing: Listing, organisation: Organisation | None, leave_out: Container[str]
) -> dict[str, list[int]]:
    """Return the places of each class, or of each folder."""
    splits = [range(len(listing))] if organisation is None else organisation.splits.values()
    labels = None if organisation is None else organisation.labels
    classes = () if organisation is None else organisation.classes
    groups: dict[str, list[int]] = {name: [] for name in classes}
    for place in sorted(int(place) for places in splits for place in places):
        name = listing.names[place]
        if name not in leave_out:
            group = name.rpartition("/")[0] if labels is None else classes[labels[place]]
            groups.setdefault(group, []).append(place)
    return {group: places for group, places in groups.items() if places}


def _chosen(groups: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
    """Return as many of each group as there are; what small ones leave goes to the others."""
    names = [list(groups)[i] for i in spread(len(groups), min(_MOST_SHOWN, len(groups)))]
    shares: dict[str, int] = {}
    for done, name in enumerate(sorted(names, key=lambda name: len(groups[name]))):
        share = (_MOST_SHOWN - sum(shares.values())) // (len(names) - done)
        shares[name] = min(len(groups[name]), share)
    return [
        (name, groups[name][i]) for name in names for i in spread(len(groups[name]), shares[name])
    ]


def _cell(caption: str, image: Tensor, rule: Rule) -> _Cell:
    height, width = image.shape[1:]
    whole = _picture(_seen(image, rule), _BOX, fill=True)
    try:
        top, left, kept_height, kept_width = rule.kept(height, width)
        result = None if rule.size is None else _picture(_seen(rule.apply(image), rule), _SMALL_BOX)
    except UnusableImage:  # nothing of it can be kept
        return _Cell(caption, _framed(whole, (0, 0, 0, 0)), None)
    wide, high = whole.width / width, whole.height / height
    right, bottom = left + kept_width, top + kept_height
    frame = round(left * wide), round(top * high), round(right * wide), round(bottom * high)
    return _Cell(caption, _framed(whole, frame), result)


def _seen(image: Tensor, rule: Rule) -> Tensor:
    """Return 8-bit RGB; of many channels the first three."""
    shown = image if len(image) <= 4 else image[:3]
    return Rule(channels=3, bits=8, background=rule.background).apply(shown)


def _picture(image: Tensor, box: int, fill: bool = False) -> Image.Image:
    """Return an image that fits into a box; pixels are repeated unless few would ``fill`` it."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    factor = box / max(picture.size)
    if factor >= (_BLOCKS if fill else 1):
        width, height = (int(factor) * side for side in picture.size)
        return picture.resize((width, height), Image.Resampling.NEAREST)
    width, height = (max(1, round(factor * side)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)


def _framed(picture: Image.Image, kept: tuple[int, int, int, int]) -> Image.Image:
    """Darken all but left, top, right, bottom, and draw a line around these."""
    if kept == (0, 0, *picture.size):
        return picture
    framed = picture.point(lambda level: round(level * _DARKENED))
    left, top, right, bottom = kept
    if right > left and bottom > top:
        framed.paste(picture.crop(kept), (left, top))
        corners = max(left - 1, 0), max(top - 1, 0), right, bottom
        edges = min(corners[2], picture.width - 1), min(corners[3], picture.height - 1)
        ImageDraw.Draw(framed).rectangle((*corners[:2], *edges), outline=_LINE)
    return framed


def _legend(rule: Rule) -> str:
    if rule.size is None:
        return ""
    height, width = rule.size
    what = f"{rule.fit} to {height}x{width}"
    cuts = " (dark: cut away)" if rule.fit in {"crop", "cut"} else ""
    return f" Above: whole{cuts}; below: after {what}."


def _strip(cells: Sequence[_Cell], captioned: bool) -> Image.Image:
    """Draw a row of cells: captions, whole images, results."""
    pitch = _BOX + _GAP
    high = max(cell.whole.height for cell in cells)
    below = max(cell.result.height if cell.result else 0 for cell in cells)
    top = _TEXT + 6 if captioned else 0
    height = top + high + (below + _GAP // 2 if below else 0)
    strip = Image.new("RGB", (len(cells) * pitch - _GAP, height), _PAPER)
    for i, cell in enumerate(cells):
        _paste(strip, cell.whole, i * pitch, top + (high - cell.whole.height) // 2)
        if cell.result is not None:
            _paste(strip, cell.result, i * pitch, top + high + _GAP // 2)
    start = 0
    for caption, same in itertools.groupby(cells if captioned else (), lambda cell: cell.caption):
        num = len(list(same))
        _write(strip, (start * pitch, 0), _shortened(_ascii(caption), num * pitch - _GAP))
        start += num
    return strip


def _paste(strip: Image.Image, picture: Image.Image, left: int, top: int) -> None:
    strip.paste(picture, (left + (_BOX - picture.width) // 2, top))


def _page(strips: Sequence[Image.Image], legend: str) -> Tensor:
    width = max(3 * _BOX, *(strip.width for strip in strips))
    lines = _wrapped(_ascii(legend), width)
    top = _MARGIN + len(lines) * (_TEXT + 5) + _GAP
    height = top + sum(strip.height + 2 * _GAP for strip in strips) - 2 * _GAP + _MARGIN
    page = Image.new("RGB", (width + 2 * _MARGIN, height), _PAPER)
    for i, line in enumerate(lines):
        _write(page, (_MARGIN, _MARGIN + i * (_TEXT + 5)), line)
    for strip in strips:
        page.paste(strip, (_MARGIN, top))
        top += strip.height + 2 * _GAP
    return torch.from_numpy(np.array(page)).permute(2, 0, 1)


def _write(page: Image.Image, at: tuple[int, int], text: str) -> None:
    ImageDraw.Draw(page).text(at, text, fill=_INK, font=ImageFont.load_default(_TEXT))


def _width(text: str) -> float:
    return ImageFont.load_default(_TEXT).getlength(text)


def _ascii(text: str) -> str:
    """Return all that Pillow's own font has letters for."""
    plain = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(plain).encode("ascii", errors="replace").decode()


def _shortened(text: str, width: float) -> str:
    if _width(text) <= width:
        return text
    while text and _width(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _wrapped(text: str, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _width(longer) > width:
            lines.append(word)
        else:
            lines[-1] = _shortened(longer, width)
    return lines
