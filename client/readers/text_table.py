"""Texts in a table: CSV with a header (gzipped or not), Parquet, or JSON, an object a line.

Beside a text stands its label, and as in any table whose it is and what groups it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.client.readers import reader
from fedgraft.client.readers.reader import Reader, ReadRequest, TableColumns, has_suffix
from fedgraft.client.readers.source import (
    Prepare,
    Source,
    content_digest,
    digest,
    row_identity,
)
from fedgraft.client.readers.table_cells import (
    JSON_SUFFIXES,
    PARQUET_SUFFIXES,
    Cells,
    raise_mistakes,
    read_cells,
)
from fedgraft.client.readers.table_file import list_missing_labels, read_column
from fedgraft.common.tasks.labels import join_labels

TABLE_SUFFIXES = (".csv", ".csv.gz", *PARQUET_SUFFIXES, *JSON_SUFFIXES)
_ADD = "; add the column (it may be empty) or change task.text or task.target"


def read_texts(path: Path, columns: Sequence[str]) -> list[str]:
    """Return the texts alone, for prediction: of each row the cells of the columns, a line each,
    empty ones left out.

    Raises:
        UserError: the file cannot be read, or lacks a column.
    """
    cells = read_cells(path)
    cells.check_columns(columns, remedy=_ADD)
    return join_columns(cells, columns)


def join_columns(cells: Cells, columns: Sequence[str]) -> list[str]:
    """Return the text of each row."""
    parts = [cells.column(name) for name in columns]
    return ["\n".join(filter(None, row)) for row in zip(*parts, strict=True)]


def read_labelled_texts(path: Path, columns: TableColumns) -> Source:
    """Return texts and labels. Raise `UserError` as `read_texts`, and for rows without a label."""
    cells = read_cells(path)
    cells.check_columns((*columns.features, *columns.targets), remedy=_ADD)
    raise_mistakes(list_missing_labels(cells, columns.targets))

    texts = join_columns(cells, columns.features)
    labels = join_labels([cells.column(name) for name in columns.targets])
    starts = find_answers(cells, columns, texts)
    if starts is not None:
        # an answer is a text, and texts are not for messages
        labels = ["text"] * len(texts)
    contents = [text.encode() for text in texts]
    digests = []
    for content, label in zip(contents, labels, strict=True):
        digests.append(digest(content, label))

    def read(rows: np.ndarray, prepare: Prepare | None = None) -> Any:
        picked = [texts[row] for row in rows.tolist()]
        return picked if prepare is None else prepare(picked)

    return Source(
        where=str(path),
        labels=labels,
        digests=digests,
        read=read,
        place=lambda row: f"{path}:{cells.lines[row]}",
        column=lambda name: read_column(path, name),
        contents=[content_digest(content) for content in contents],
        identities=[row_identity(cells.header, row) for row in cells.rows],
        plural="texts",
        texts=texts,
        answers_at=starts,
    )


def find_answers(cells: Cells, columns: TableColumns, texts: Sequence[str]) -> list[int] | None:
    """Return where in each text its answer begins, characters: it is the last of a text's parts.
    None where a text holds none.
    """
    if columns.targets != columns.features[-1:]:
        return None
    (target,) = columns.targets
    answers = cells.column(target)
    return [len(text) - len(answer) for text, answer in zip(texts, answers, strict=True)]


def _read(request: ReadRequest) -> Source:
    return read_labelled_texts(Path(request.path), request.table)


TEXTS = Reader(
    "texts",
    matches=has_suffix(*TABLE_SUFFIXES),
    gives=lambda _: reader.TEXTS,
    read=_read,
    options=lambda request: request.table,
)
