"""Data sets that scikit-learn ships: `sklearn:digits` (images), `sklearn:breast_cancer`, …
(tables).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedgraft.client.readers.image_arrays import image_source
from fedgraft.client.readers.reader import (
    IMAGES,
    NO_TABLE,
    TABLE,
    Content,
    Reader,
    ReadRequest,
    TableColumns,
)
from fedgraft.client.readers.reader_table import PREFIX
from fedgraft.client.readers.source import (
    Label,
    Source,
    array_reader,
    did_you_mean,
    row_identity,
    table_digests,
)
from fedgraft.client.readers.table_cells import Cells, raise_mistakes
from fedgraft.client.readers.table_encoding import encode
from fedgraft.common.errors import UserError

PICTURES = ("digits",)
TABLES = ("breast_cancer", "wine", "iris")
# their pixels are 0 to 16
_WHITE = 16


def read_bundled(name: str, columns: TableColumns = NO_TABLE) -> Source:
    """Return a data set by its name, such as `sklearn:digits`.

    Digits: 1,797 grey images of 8×8; their values 0–16 are scaled to 0–255.

    Raises:
        UserError: no data set of this name, or a column that it lacks.
    """
    bare = name.removeprefix(PREFIX)
    if bare not in PICTURES + TABLES:
        known = ", ".join(f"{PREFIX}{each}" for each in PICTURES + TABLES)
        raise UserError(f"no data set {name!r}", where="data.path", remedy=f"known: {known}")
    # a second of imports
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{bare}")()
    labels: list[Label] = [int(label) for label in bunch.target]
    if bare in PICTURES:
        pixels = np.rint(bunch.images * (255 / _WHITE)).astype(np.uint8)
        return image_source(name, pixels[:, None], labels, {})
    return _table_source(name, bunch, labels, columns)


def _table_source(name: str, bunch: Any, labels: list[Label], columns: TableColumns) -> Source:
    header = [str(column) for column in bunch.feature_names]
    values = bunch.data.tolist()
    texts = [list(map(str, row)) for row in values]
    cells = Cells(name, header, range(1, len(texts) + 1), texts)

    def column(wanted: str) -> list[str]:
        _check_column(name, header, wanted)
        return cells.column(wanted)

    for wanted in columns.features:
        _check_column(name, header, wanted)
    encoded = encode(cells, columns)
    raise_mistakes(encoded.mistakes)
    named = [*header, "target"]
    rows = [[*row, label] for row, label in zip(values, labels, strict=True)]
    return Source(
        where=name,
        labels=labels,
        digests=table_digests(encoded.values, labels),
        read=array_reader(encoded.values),
        place=lambda row: f"{name}: row {row}",
        column=column,
        identities=[row_identity(named, row) for row in rows],
    )


def _check_column(name: str, header: list[str], column: str) -> None:
    if column not in header:
        what = f"no column {column!r}{did_you_mean(column, header)}"
        raise UserError(what, where=name, remedy=f"it has {', '.join(header)}")


def _gives(path: str) -> Content:
    if path.removeprefix(PREFIX) in TABLES:
        return TABLE
    return IMAGES


def _read(request: ReadRequest) -> Source:
    return read_bundled(request.path, request.table)


SKLEARN = Reader(
    "sklearn",
    matches=lambda path: path.startswith(PREFIX),
    gives=_gives,
    read=_read,
    # they come with scikit-learn: nothing of them changes
    stamp=lambda _: (),
    options=lambda request: request.table,
)
