"""Data sets that scikit-learn ships: `sklearn:digits` (images), `sklearn:breast_cancer`, …
(tables).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedgraft.client.readers.arrays import image_source
from fedgraft.client.readers.registry import PREFIX
from fedgraft.client.readers.source import Source, array_reader, did_you_mean, digest, row_identity
from fedgraft.client.readers.table_file import NONE, Categories, encode, tell
from fedgraft.common.errors import UserError

IMAGES = ("digits",)
TABLES = ("breast_cancer", "wine", "iris")


def read_bundled(name: str, columns: Sequence[str] = (), categories: Categories = NONE) -> Source:
    """A data set by its name, such as `sklearn:digits`.

    Digits: 1,797 grey images of 8×8; their values 0–16 are scaled to 0–255.

    Raises:
        UserError: no data set of this name, or a column that it lacks.
    """
    bare = name.removeprefix(PREFIX)
    if bare not in IMAGES + TABLES:
        known = ", ".join(PREFIX + each for each in IMAGES + TABLES)
        raise UserError(f"no data set {name!r}", where="data.path", remedy=f"known: {known}")
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{bare}")()
    labels = [int(label) for label in bunch.target]
    if bare in IMAGES:
        images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
        return image_source(name, images, labels, {})
    header = [str(column) for column in bunch.feature_names]

    def at(column: str) -> int:
        if column not in header:
            what = f"no column {column!r}{did_you_mean(column, header)}"
            raise UserError(what, where=name, remedy=f"it has {', '.join(header)}")
        return header.index(column)

    for column in columns:
        at(column)
    cells = [[str(value) for value in row] for row in bunch.data.tolist()]
    encoded = encode(name, header, range(1, len(cells) + 1), cells, columns, categories)
    tell(encoded.mistakes)
    values = encoded.values
    return Source(
        where=name,
        labels=labels,
        digests=[digest(row.tobytes(), label) for row, label in zip(values, labels, strict=True)],
        read=array_reader(values),
        place=lambda row: f"{name}: row {row}",
        column=lambda column: [str(value) for value in bunch.data[:, at(column)]],
        identities=[
            row_identity([*header, "target"], [*row, label])
            for row, label in zip(bunch.data.tolist(), labels, strict=True)
        ],
    )
