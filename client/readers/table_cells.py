"""The cells of a table's file as text: CSV with a header, Parquet, or JSON, an object a line; one
row a record.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from fedgraft.client.readers.source import did_you_mean, unreadable
from fedgraft.common.errors import UserError, UserErrors

PARQUET_SUFFIXES = (".parquet", ".pq")
JSON_SUFFIXES = (".jsonl", ".jsonl.gz")
# mistakes told at once
MOST_TOLD = 20
_MOST_NAMED = 40


@dataclass(frozen=True)
class Cells:
    """A table as text.

    Attributes:
        where: the file, for messages.
        header: the columns' names.
        lines: line number of each row (of Parquet: its number from 1).
        rows: the cells of each row, as many as the header has.
    """

    where: str
    header: Sequence[str]
    lines: Sequence[int]
    rows: Sequence[Sequence[str]]

    def column(self, name: str) -> list[str]:
        """Return each row's text in one column, which must be there."""
        at = self.header.index(name)
        return [row[at].strip() for row in self.rows]

    def check_columns(self, names: Sequence[str], remedy: str = "") -> None:
        """Raise `UserError` for the first of these columns that is not there."""
        for name in names:
            if name not in self.header:
                what = f"no column {name!r}{did_you_mean(name, self.header)}"
                present = f"the file has {', '.join(self.header[:_MOST_NAMED])}"
                raise UserError(what, where=f"{self.where}:1", remedy=present + remedy)


def read_cells(path: Path) -> Cells:
    """Return the cells of a file, blank lines left out.

    Raises:
        UserError: the file cannot be read, has no rows, a column twice, or rows of another length.
    """
    if path.suffix.lower() in PARQUET_SUFFIXES:
        cells = _read_parquet(path)
    elif path.name.lower().endswith(JSON_SUFFIXES):
        cells = _read_json_lines(path)
    else:
        cells = _read_csv(path)
    _check_shape(cells)
    return cells


def _check_shape(cells: Cells) -> None:
    header = cells.header
    if not header or not cells.rows:
        remedy = "write a header line and one line a record"
        raise UserError("no rows", where=cells.where, remedy=remedy)
    name, times = Counter(header).most_common(1)[0]
    if times > 1:
        what = f"column {name!r} is there twice"
        raise UserError(what, where=f"{cells.where}:1", remedy="keep one of them")
    for line, row in zip(cells.lines, cells.rows, strict=True):
        if len(row) != len(header):
            raise UserError(
                f"{len(row)} cells, but the header has {len(header)} columns",
                where=f"{cells.where}:{line}",
                remedy="write one cell a column (empty where missing); quote text that has commas",
            )


def _read_csv(path: Path) -> Cells:
    lines = []
    rows = []
    try:
        with _open_text(path) as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if any(cell.strip() for cell in row):
                    lines.append(reader.line_num)
                    rows.append(row)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, error) from None
    return Cells(str(path), header, lines, rows)


def _open_text(path: Path) -> TextIO:
    """Open a file of text that may be gzipped."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _read_parquet(path: Path) -> Cells:
    """Return the same cells as a CSV file would have.

    A number as it is written in full, true as 1, nothing for null.
    """
    # half a second
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise unreadable(path, error) from None
    for column in table.schema:
        if pyarrow.types.is_nested(column.type) or pyarrow.types.is_binary(column.type):
            what = f"column {column.name!r} holds {column.type}"
            remedy = "write a number or a text in each cell, and images as files beside the table"
            raise UserError(what, where=str(path), remedy=remedy)

    columns = [list(map(_text, column.to_pylist())) for column in table.columns]
    rows = list(map(list, zip(*columns, strict=True)))
    header = [name.strip() for name in table.column_names]
    return Cells(str(path), header, range(1, len(rows) + 1), rows)


def _read_json_lines(path: Path) -> Cells:
    """Return the cells of a file with a JSON object a line; a key that a line lacks is empty."""
    lines: list[int] = []
    records: list[dict[str, str]] = []
    try:
        with _open_text(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    lines.append(number)
                    records.append(_read_object(line, f"{path}:{number}"))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None
    header: dict[str, None] = {}
    for record in records:
        header |= dict.fromkeys(record)
    rows = [[record.get(name, "") for name in header] for record in records]
    return Cells(str(path), tuple(header), lines, rows)


def _read_object(line: str, where: str) -> dict[str, str]:
    """Return a line's object with its values as text. Raise `UserError` where it is none."""
    remedy = 'write one object a line, such as {"text": "…", "label": "…"}'
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError("a line that is no JSON", where=where, remedy=remedy) from None
    if not isinstance(values, dict):
        raise UserError("a line that is no JSON object", where=where, remedy=remedy)
    for name, value in values.items():
        if isinstance(value, dict | list):
            what = f"{name[:40]!r} holds more than a number or a text"
            raise UserError(what, where=where, remedy=remedy)
    return {name.strip(): _text(value) for name, value in values.items()}


def _text(value: object) -> str:
    # NaN, which is not itself, is how pandas writes a missing number
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return str(value)


def raise_mistakes(mistakes: Sequence[UserError]) -> None:
    """Raise what is wrong, all at once, or nothing."""
    if len(mistakes) == 1:
        raise mistakes[0]
    if mistakes:
        raise UserErrors(mistakes[:MOST_TOLD])
