"""A hospital's table: CSV with a header, or Parquet; one row a record, an empty cell where a value
is missing.

A column of categories, which the plan names with their values so that all hospitals encode alike,
becomes one input a value: 1 for the row's own, 0 for the others, and missing in all of them where
the cell is empty or holds a value that the plan does not know. Too many unknown ones are an error:
they are another spelling, not missing.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from fedgraft.client.readers.source import (
    Label,
    Source,
    array_reader,
    did_you_mean,
    digest,
    plain,
    row_identity,
    unreadable,
)
from fedgraft.common.errors import UserError, UserErrors

PARQUET = (".parquet", ".pq")
Categories = Mapping[str, Sequence[Label]]
NONE: Categories = MappingProxyType({})
MOST_TOLD = 20  # mistakes told at once
_LARGEST = float(np.finfo(np.float32).max)


def read_table(
    path: Path, columns: Sequence[str], target: str, categories: Categories = NONE
) -> Source:
    """The feature columns and labels of a table, as float32 `(n, F)` with NaN where a cell is
    empty.

    Raises:
        UserError: the file cannot be read, lacks a column, or a cell is not a number; each mistake
            with line and column.
    """
    header, lines, rows = read_cells(path)
    _must_have(path, header, (*columns, target))
    encoded = encode(str(path), header, lines, rows, columns, categories)
    mistakes, label_at = list(encoded.mistakes), header.index(target)
    labels = [plain(row[label_at]) for row in rows]
    for i, row in enumerate(rows):
        if not row[label_at].strip():
            mistakes.append(_mistake(str(path), lines[i], target, "the label is missing"))
    tell(mistakes)
    values = encoded.values
    return Source(
        where=str(path),
        labels=labels,
        digests=[digest(row.tobytes(), label) for row, label in zip(values, labels, strict=True)],
        read=array_reader(values),
        place=lambda row: f"{path}:{lines[row]}",
        column=lambda name: read_column(path, name),
        identities=[row_identity(header, row) for row in rows],
        unknown=encoded.unknown,
    )


def read_features(path: Path, columns: Sequence[str], categories: Categories = NONE) -> np.ndarray:
    """The feature columns alone, for prediction: float32 `(n, F)`, NaN where empty. Raises as
    `read_table`.
    """
    header, lines, rows = read_cells(path)
    _must_have(path, header, columns)
    encoded = encode(str(path), header, lines, rows, columns, categories)
    tell(encoded.mistakes)
    return encoded.values


def read_column(path: Path, name: str) -> list[str]:
    """Each row's text in one column. Raises `UserError` where there is no such column."""
    header, _, rows = read_cells(path)
    if name not in header:
        what = f"no column {name!r}{did_you_mean(name, header)}"
        raise UserError(what, where=f"{path}:1", remedy=f"the file has {', '.join(header[:40])}")
    at = header.index(name)
    return [row[at].strip() for row in rows]


def _must_have(path: Path, header: list[str], names: Sequence[str]) -> None:
    for name in names:
        if name not in header:
            raise UserError(
                f"no column {name!r}{did_you_mean(name, header)}",
                where=f"{path}:1",
                remedy=(
                    f"the file has {', '.join(header[:40])}; add the column (it may be empty) "
                    "or change task.columns or task.target"
                ),
            )


class Encoded(NamedTuple):
    """Inputs float32 `(n, F)`, what is wrong with the cells, and how many unknown values each
    column has.
    """

    values: np.ndarray
    mistakes: list[UserError]
    unknown: dict[str, int]


def encode(
    where: str,
    header: Sequence[str],
    lines: Sequence[int],
    rows: Sequence[Sequence[str]],
    columns: Sequence[str],
    categories: Categories = NONE,
) -> Encoded:
    """Cells of the feature columns as inputs: a number each, or one input for each of a column's
    categories.
    """
    widths = [len(categories.get(name, ())) or 1 for name in columns]
    values = np.full((len(rows), sum(widths)), np.nan, np.float32)
    mistakes: list[UserError] = []
    unknown: dict[str, int] = {}
    for name, width, at in zip(columns, widths, np.cumsum([0, *widths]), strict=False):
        cells = [row[header.index(name)].strip() for row in rows]
        if name in categories:
            known = {plain(value): number for number, value in enumerate(categories[name])}
            given = [(i, known.get(plain(cell), -1), cell) for i, cell in enumerate(cells) if cell]
            for i, number, _ in given:
                if number >= 0:
                    values[i, at : at + width] = 0
                    values[i, at + number] = 1
            strange = sorted({cell for _, number, cell in given if number < 0})
            unknown[name] = sum(number < 0 for _, number, _ in given)
            if 2 * unknown[name] > len(given):
                mistakes.append(
                    _misspelt(
                        where, name, strange, list(categories[name]), unknown[name], len(given)
                    )
                )
            continue
        for i, cell in enumerate(cells):
            try:
                values[i, at] = _number(cell)
            except ValueError as error:
                mistakes.append(_mistake(where, lines[i], name, str(error)))
                if len(mistakes) >= MOST_TOLD:
                    return Encoded(values, mistakes, unknown)
    values += 0.0  # −0 → 0: equal rows get equal digests
    return Encoded(values, mistakes, {name: count for name, count in unknown.items() if count})


def tell(mistakes: list[UserError]) -> None:
    """Raise what is wrong, all at once, or nothing."""
    if mistakes:
        raise mistakes[0] if len(mistakes) == 1 else UserErrors(mistakes[:MOST_TOLD])


def read_cells(path: Path) -> tuple[list[str], list[int], list[list[str]]]:
    """Header, line number of each row (of Parquet: its number from 1), and the rows' cells; blank
    lines left out.

    Raises:
        UserError: the file cannot be read, has no rows, a column twice, or rows of another length.
    """
    header, lines, rows = _parquet(path) if path.suffix.lower() in PARQUET else _csv(path)
    if not header or not rows:
        raise UserError(
            "no rows", where=str(path), remedy="write a header line and one line a record"
        )
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UserError(
            f"column {twice!r} is there twice", where=f"{path}:1", remedy="keep one of them"
        )
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise UserError(
                f"{len(row)} cells, but the header has {len(header)} columns",
                where=f"{path}:{line}",
                remedy="write one cell a column (empty where missing); quote text that has commas",
            )
    return header, lines, rows


def _csv(path: Path) -> tuple[list[str], list[int], list[list[str]]]:
    lines, rows = [], []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if any(cell.strip() for cell in row):
                    lines.append(reader.line_num)
                    rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, error) from None
    return header, lines, rows


def _parquet(path: Path) -> tuple[list[str], list[int], list[list[str]]]:
    """The same cells as a CSV file would have: a number as it is written in full, true as 1,
    nothing for null.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise unreadable(path, error) from None
    for column in table.schema:
        if pyarrow.types.is_nested(column.type) or pyarrow.types.is_binary(column.type):
            remedy = "write a number or a text in each cell, and images as files beside the table"
            raise UserError(
                f"column {column.name!r} holds {column.type}", where=str(path), remedy=remedy
            )
    columns = [[_text(value) for value in column.to_pylist()] for column in table.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return [name.strip() for name in table.column_names], list(range(1, len(rows) + 1)), rows


def _text(value: object) -> str:
    if value is None or value != value:  # NaN is how pandas writes a missing number
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _number(cell: str) -> float:
    """A cell's value, NaN where empty; raises ValueError that says what it is instead."""
    text = cell.strip()
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a number") from None
    if "_" in text or math.isnan(value):
        raise ValueError(f"{text[:40]!r} is not a number")
    if abs(value) > _LARGEST:
        raise ValueError(f"{text[:40]!r} is infinite, or too large for a 32-bit number")
    return value


def _mistake(where: str, line: int, column: str, what: str) -> UserError:
    remedy = (
        "write a number such as 1.5, or leave the cell empty where the value is missing; "
        "if the column holds words, the plan must name them: task.categories"
    )
    if what == "the label is missing":
        remedy = "give the record its label, or take the line out"
    return UserError(f"column {column!r}: {what}", where=f"{where}:{line}", remedy=remedy)


def _misspelt(
    where: str, column: str, strange: list[str], known: Sequence[Label], unknown: int, given: int
) -> UserError:
    shown = ", ".join(repr(cell[:20]) for cell in strange[:5])
    return UserError(
        f"column {column!r}: {unknown} of {given} values are not among the plan's categories, such"
        f" as {shown}",
        where=where,
        remedy=(
            f"write them as the plan does: {', '.join(str(value) for value in known[:12])}; "
            "or ask the coordinator to add them to task.categories"
        ),
    )
