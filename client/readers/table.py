"""A hospital's table: CSV with a header, one row a record, an empty cell where a value is missing."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from client.readers.source import Source, array_reader, did_you_mean, digest, plain, row_identity, unreadable
from common.errors import UserError, UserErrors

MOST_TOLD = 20  # mistakes told at once
_LARGEST = float(np.finfo(np.float32).max)


def read_csv(path: Path, columns: Sequence[str], target: str) -> Source:
    """The feature columns and labels of a table, as float32 `(n, F)` with NaN where a cell is empty.

    Raises:
        UserError: the file cannot be read, lacks a column, or a cell is not a number; each mistake with
            line and column.
    """
    header, lines, rows = _cells(path)
    _must_have(path, header, (*columns, target))
    values, mistakes = _numbers(path, header, lines, rows, columns)
    label_at = header.index(target)
    labels = [plain(row[label_at]) for row in rows]
    for i, row in enumerate(rows):
        if not row[label_at].strip():
            mistakes.append(_mistake(path, lines[i], target, "the label is missing"))
    _raise(mistakes)
    values += 0.0  # −0 → 0: equal rows get equal digests
    return Source(
        where=str(path),
        labels=labels,
        digests=[digest(row.tobytes(), label) for row, label in zip(values, labels, strict=True)],
        read=array_reader(values),
        place=lambda row: f"{path}:{lines[row]}",
        column=lambda name: read_column(path, name),
        identities=[row_identity(header, row) for row in rows],
    )


def read_features(path: Path, columns: Sequence[str]) -> np.ndarray:
    """The feature columns alone, for prediction: float32 `(n, F)`, NaN where empty. Raises as `read_csv`."""
    header, lines, rows = _cells(path)
    _must_have(path, header, columns)
    values, mistakes = _numbers(path, header, lines, rows, columns)
    _raise(mistakes)
    return values


def read_column(path: Path, name: str) -> list[str]:
    """Each row's text in one column. Raises `UserError` where there is no such column."""
    header, _, rows = _cells(path)
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
                remedy=f"the file has {', '.join(header[:40])}; add the column (it may be empty) "
                f"or change task.columns or task.target",
            )


def _numbers(
    path: Path, header: list[str], lines: list[int], rows: list[list[str]], columns: Sequence[str]
) -> tuple[np.ndarray, list[UserError]]:
    """Cells of the feature columns as float32 `(n, F)`, and the mistakes among them."""
    values = np.full((len(rows), len(columns)), np.nan, np.float32)
    mistakes: list[UserError] = []
    at = [header.index(name) for name in columns]
    for i, row in enumerate(rows):
        for j, k in enumerate(at):
            try:
                values[i, j] = _number(row[k])
            except ValueError as error:
                mistakes.append(_mistake(path, lines[i], columns[j], str(error)))
        if len(mistakes) >= MOST_TOLD:
            break
    return values, mistakes


def _raise(mistakes: list[UserError]) -> None:
    if mistakes:
        raise mistakes[0] if len(mistakes) == 1 else UserErrors(mistakes[:MOST_TOLD])


def _cells(path: Path) -> tuple[list[str], list[int], list[list[str]]]:
    """Header, line number of each row, and the rows' cells; blank lines are left out."""
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
    if not header or not rows:
        raise UserError("no rows", where=str(path), remedy="write a header line and one line a record")
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UserError(f"column {twice!r} is there twice", where=f"{path}:1", remedy="keep one of them")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise UserError(
                f"{len(row)} cells, but the header has {len(header)} columns",
                where=f"{path}:{line}",
                remedy="write one cell a column (empty where missing); quote text that has commas",
            )
    return header, lines, rows


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


def _mistake(path: Path, line: int, column: str, what: str) -> UserError:
    remedy = "write a number such as 1.5, or leave the cell empty where the value is missing"
    if what == "the label is missing":
        remedy = "give the record its label, or take the line out"
    return UserError(f"column {column!r}: {what}", where=f"{path}:{line}", remedy=remedy)
