"""Tables of files: the label and the split of each, as CSV or JSON lines."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

_FILE = ("file", "file_name", "filename", "path", "image", "id")
_LABEL = ("label", "class", "category")
_SPLIT = ("split",)
Row = tuple[str | None, str | None]
"""A file's label and split."""


def read_table(path: str | Path) -> dict[str, Row]:
    """Read a table of files.

    A ``.csv`` (or ``.tsv``) has a line of column names first; of ``.jsonl`` each line is an object.
    The columns: ``file`` (or file_name, filename, path, image, id), and ``label`` (or class,
    category), ``split``, or both. Others are ignored.

    Args:
        path: The table.

    Returns:
        Label and split by file, as text; None where there is no such column.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column or a value is missing, or two rows contradict each other.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no table {path} (looked for {path.resolve()}); name a .csv or .jsonl file."
        )
    table: dict[str, Row] = {}
    for line, row in _rows(path):
        file = _value(row, _FILE)
        found = _interned(_value(row, _LABEL)), _interned(_value(row, _SPLIT))
        if file is None or found == (None, None):
            raise ValueError(
                f"{path}, line {line}: expected a file and its label or split, got the columns "
                f"{', '.join(row) or 'none'}; call them file, label and split."
            )
        if "" in (file, *found):
            raise ValueError(f"{path}, line {line}: a value is missing ({dict(row)}).")
        if table.setdefault(file, found) != found:
            raise ValueError(
                f"{path}, line {line}: {file!r} is {_said(found)}, but {_said(table[file])} "
                "further up; a file has one label and one split."
            )
    if not table:
        raise ValueError(f"The table {path} has no rows.")
    if len({(label is None, split is None) for label, split in table.values()}) > 1:
        raise ValueError(f"{path}: some rows have a label or a split, and others have none.")
    return table


def _interned(value: str | None) -> str | None:
    return None if value is None else sys.intern(value)  # few are different


def _said(row: Row) -> str:
    named = zip(("label", "split"), row, strict=True)
    return " ".join(f"{what} {value!r}" for what, value in named if value)


def _value(row: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((row[name] for name in names if name in row), None)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield each row's columns in lower case, with the number of its line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"The table {path} is no UTF-8 text: {error}.") from error
    if path.suffix.lower() in {".jsonl", ".json"}:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _parsed(path, number, line)
        return
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(header))
    for row in reader:
        yield (
            reader.line_num,
            {k.strip().lower(): (v or "").strip() for k, v in row.items() if k is not None},
        )


def _parsed(path: Path, number: int, line: str) -> Mapping[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: no JSON object ({error}).") from error
    if not isinstance(row, dict) or any(isinstance(v, list | dict) for v in row.values()):
        raise ValueError(
            f"{path}, line {number}: expected one JSON object of text and numbers in each line, "
            f"got {line[:40]!r}."
        )
    return {str(k).lower(): "" if v is None else str(v) for k, v in row.items()}


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)
