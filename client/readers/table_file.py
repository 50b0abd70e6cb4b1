"""A hospital's table: CSV with a header (gzipped or not), or Parquet; one row a record, an empty
cell where a value is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fedgraft.client.readers.reader import TABLE, Reader, ReadRequest, TableColumns, has_suffix
from fedgraft.client.readers.source import (
    Label,
    Source,
    array_reader,
    row_identity,
    table_digests,
)
from fedgraft.client.readers.table_cells import PARQUET_SUFFIXES, Cells, raise_mistakes, read_cells
from fedgraft.client.readers.table_encoding import encode
from fedgraft.common.errors import UserError
from fedgraft.common.plan.reading_section import to_write
from fedgraft.common.tasks.labels import join_labels

NO_CATEGORIES: Mapping[str, Sequence[Label]] = MappingProxyType({})
_LABEL = "give the record its label, or take the line out"
_ADD = "; add the column (it may be empty) or change task.columns or task.target"


def read_table(
    path: Path,
    columns: TableColumns,
    *,
    allow_unknown: bool = False,
    allow_unlabelled: bool = False,
) -> Source:
    """Return the feature columns and labels, as float32 `(n, F)` with NaN where a cell is empty.

    Args:
        allow_unknown: whether values that the plan's categories do not name are missing.
        allow_unlabelled: whether rows may lack a label: the question leaves them out.

    Raises:
        UserError: the file cannot be read, lacks a column, or a cell is not a number; each mistake
            with line and column.
    """
    cells = read_cells(path)
    cells.check_columns((*columns.features, *columns.targets), remedy=_ADD)
    encoded = encode(cells, columns, allow_unknown=allow_unknown)
    mistakes = [*encoded.mistakes]
    if not allow_unlabelled:
        remedy = f"{_LABEL}; to leave such out: {to_write('labels_left_out', 'allow')}"
        mistakes += list_missing_labels(cells, columns.targets, remedy)
    raise_mistakes(mistakes)

    labels = join_labels([cells.column(name) for name in columns.targets])
    return Source(
        where=str(path),
        labels=labels,
        digests=table_digests(encoded.values, labels),
        read=array_reader(encoded.values),
        place=lambda row: f"{path}:{cells.lines[row]}",
        column=lambda name: read_column(path, name),
        identities=[row_identity(cells.header, row) for row in cells.rows],
        unknown=encoded.unknown,
    )


def list_missing_labels(
    cells: Cells, targets: Sequence[str], remedy: str = _LABEL
) -> list[UserError]:
    """Return what to say of rows without a label; where it is in several columns, the question says
    what may be missing.
    """
    mistakes: list[UserError] = []
    if len(targets) != 1:
        return mistakes
    (target,) = targets
    for line, label in zip(cells.lines, cells.column(target), strict=True):
        if not label:
            what = f"column {target!r}: the label is missing"
            mistakes.append(UserError(what, where=f"{cells.where}:{line}", remedy=remedy))
    return mistakes


def read_features(
    path: Path, columns: Sequence[str], categories: Mapping[str, Sequence[Label]] = NO_CATEGORIES
) -> np.ndarray:
    """Return the feature columns alone, for prediction: float32 `(n, F)`, NaN where empty.

    Values that the categories do not name are missing, up to half of a column. Raises as
    `read_table`.
    """
    cells = read_cells(path)
    cells.check_columns(columns, remedy=_ADD)
    asked = TableColumns.of(columns, categories, targets=())
    encoded = encode(cells, asked, allow_unknown=True)
    raise_mistakes(encoded.mistakes)
    return encoded.values


def read_column(path: Path, name: str) -> list[str]:
    """Return each row's text in one column. Raise `UserError` where there is no such column."""
    cells = read_cells(path)
    cells.check_columns([name])
    return cells.column(name)


def _read(request: ReadRequest) -> Source:
    return read_table(
        Path(request.path),
        request.table,
        allow_unknown=request.reading.unknown_categories == "missing",
        allow_unlabelled=request.reading.labels_left_out == "allow",
    )


def _table_reader(name: str, *suffixes: str) -> Reader:
    return Reader(
        name,
        matches=has_suffix(*suffixes),
        gives=lambda _: TABLE,
        read=_read,
        options=lambda request: request.table,
    )


CSV = _table_reader("csv", ".csv", ".csv.gz")
PARQUET = _table_reader("parquet", *PARQUET_SUFFIXES)
