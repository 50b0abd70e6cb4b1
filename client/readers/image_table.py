"""A list of image files with a table beside them: CSV or Parquet with a row an image, its path, its
label, and the columns that a plan reads.

    path,label,age,sex,patient
    p001/a.png,benign,61,f,p001

The list is read as a manifest, and its columns as a table's. A record whose image cannot be used is
left out with its row.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedgraft.client.readers import reader
from fedgraft.client.readers.files import image_files
from fedgraft.client.readers.image_file import read_images
from fedgraft.client.readers.manifest import choose_label_columns, file_at, read_listed
from fedgraft.client.readers.mask_source import image_masks
from fedgraft.client.readers.pixel_form import PixelForm
from fedgraft.client.readers.reader import (
    ManifestColumns,
    Reader,
    ReadRequest,
    TableColumns,
    has_suffix,
)
from fedgraft.client.readers.source import Prepare, Source
from fedgraft.client.readers.table_cells import PARQUET_SUFFIXES, Cells, raise_mistakes, read_cells
from fedgraft.client.readers.table_encoding import Encoded, encode
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch, concatenate
from fedgraft.common.inputs.image_and_table import ImageWithRow

SUFFIXES = (".csv", ".csv.gz", *PARQUET_SUFFIXES)
_ADD = "; add the column (it may be empty) or change task.columns"


def read_list(request: ReadRequest) -> Source:
    """Return the images that a list names, each with its row; unusable ones are left out.

    Raises:
        UserError: it lacks a column, a feature says where an image is or what it is labelled, a
            cell is no number, or as `manifest.read_listed`.
    """
    cells = read_cells(Path(request.path))
    names = request.manifest
    allow_unknown = request.reading.unknown_categories == "missing"
    encoded = encode_rows(cells, request.table, names, allow_unknown=allow_unknown)
    images = read_listed(request, cells, image_files(request.form), image_masks(request.form))
    listed: dict[str, int] = {}
    for row, name in enumerate(cells.column(names.path)):
        listed[file_at(cells, name)] = row
    values = encoded.values[[listed[file] for file in images.files]]
    values.setflags(write=False)

    def read(rows: np.ndarray, prepare: Prepare | None = None) -> Any:
        if prepare is None:
            return [_read_one(images, values, row) for row in rows.tolist()]
        # one after the other: images of a list may differ in size
        prepared: list[Batch] = []
        for row in rows.tolist():
            prepared.append(prepare([_read_one(images, values, row)]))
        return concatenate(prepared)

    digests = []
    for seen, row in zip(images.digests, values, strict=True):
        digests.append(hashlib.sha256(seen + row.tobytes()).digest())
    return replace(images, read=read, digests=digests, unknown=encoded.unknown, _derived={})


def encode_rows(
    cells: Cells, columns: TableColumns, names: ManifestColumns, *, allow_unknown: bool
) -> Encoded:
    """Return a list's feature columns as inputs, without its images. Raise as `read_list`."""
    labels = choose_label_columns(cells, names, columns.targets)
    for name in (names.path, *labels, names.split):
        if name in columns.features:
            what = f"column {name!r} is among the features, and it is the list's own"
            raise UserError(what, where=cells.where, remedy="leave it out of task.columns")
    cells.check_columns((names.path, *columns.features), remedy=_ADD)
    encoded = encode(cells, columns, allow_unknown=allow_unknown)
    raise_mistakes(encoded.mistakes)
    return encoded


def read_unlabelled(path: Path, columns: TableColumns) -> list[tuple[str, Path, torch.Tensor]]:
    """Return what a list says of each image, for prediction: its path as written, its file, and its
    row of inputs. Values that the categories do not name are missing, up to half of a column.

    Raises:
        UserError: as `read_list`, but for labels and images.
    """
    cells = read_cells(path)
    encoded = encode_rows(cells, columns, reader.USUAL_NAMES, allow_unknown=True)
    listed: list[tuple[str, Path, torch.Tensor]] = []
    written = cells.column(reader.USUAL_NAMES.path)
    for name, row in zip(written, torch.from_numpy(encoded.values), strict=True):
        listed.append((name, Path(file_at(cells, name)), row))
    return listed


def pair(file: Path, row: torch.Tensor, form: PixelForm) -> ImageWithRow:
    """Return an image file and its row as a raw record. Raise `UserError` where it is no image."""
    images = read_images([file], form=form)
    assert isinstance(images, torch.Tensor)
    return ImageWithRow(images[0], row)


def _read_one(images: Source, values: np.ndarray, row: int) -> ImageWithRow:
    image = images.read(np.array([row]), None)
    return ImageWithRow(image[0], torch.from_numpy(values[row].copy()))


IMAGE_TABLE = Reader(
    "image-table",
    matches=has_suffix(*SUFFIXES),
    read=read_list,
    gives=lambda _: reader.IMAGES_WITH_ROWS,
    options=lambda request: (request.manifest, request.table, request.form),
)
