"""A list of image files: CSV or Parquet with a row an image, its path, its label, and what else is
known.

    path,label,patient,split
    p001/a.png,normal,p001,train

Paths begin at the manifest's own folder. Images may be of any format, DICOM too. The column of
patients and the one of splits may be missing; other columns are for `partition: {kind: column}`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedgraft.client.readers.files import (
    SPLIT_NAMES,
    FileKind,
    FileTexts,
    file_source,
    image_files,
)
from fedgraft.client.readers.looked_at import ImageEntry
from fedgraft.client.readers.mask_source import MaskKind, add_masks, image_masks
from fedgraft.client.readers.reader import ManifestColumns, Reader, ReadRequest, has_suffix
from fedgraft.client.readers.source import Source
from fedgraft.client.readers.table_cells import (
    MOST_TOLD,
    PARQUET_SUFFIXES,
    Cells,
    raise_mistakes,
    read_cells,
)
from fedgraft.common.errors import UserError
from fedgraft.common.tasks.labels import join_labels

_SAY_MASKS = "; say in node.yaml which it is: data.columns: {path: …, mask: …}"
_SAY_WHICH = "; say in node.yaml which is which: data.columns: {path: …, label: …, split: …}"


def read_listed(
    request: ReadRequest, cells: Cells, kind: FileKind, masks: MaskKind | None = None
) -> Source:
    """Return the records whose files a table lists, in its order; unusable ones are left out.

    Args:
        cells: of the table at the request's path.
        kind: what kind of files they are.
        masks: how masks of such files are read, where the request asks for them; None: they have
            none.

    Raises:
        UserError: it lacks a column, or a row says no path, no label, or an unknown split; a file
            that is listed twice.
    """
    path = Path(request.path)
    names = request.manifest
    labels: tuple[str, ...] = ()
    if not request.masks:
        labels = choose_label_columns(cells, names, request.table.targets)
    cells.check_columns((names.path, *labels), remedy=_SAY_WHICH)
    entries = list_entries(cells, names, labels)
    columns = {name: cells.column(name) for name in cells.header}
    places = [f"{path}:{line}" for line in cells.lines]
    source = file_source(
        str(path),
        entries,
        texts=FileTexts(columns, places),
        cache=request.cache,
        reading=request.reading,
        kind=kind,
    )
    if not request.masks or masks is None:
        return source
    files = list_mask_files(cells, names)
    return add_masks(source, [files[record] for record in source.files], masks)


def list_mask_files(cells: Cells, names: ManifestColumns) -> dict[str, str]:
    """Return the mask of each image that a list names, by the image's file.

    Raises:
        UserError: there is no column of masks, or a row says none; several at once.
    """
    cells.check_columns((names.path, names.mask), remedy=_SAY_MASKS)
    files: dict[str, str] = {}
    mistakes: list[UserError] = []
    rows = zip(cells.lines, cells.column(names.path), cells.column(names.mask), strict=True)
    for line, name, mask in rows:
        files[file_at(cells, name)] = file_at(cells, mask)
        if not mask and len(mistakes) < MOST_TOLD:
            what = f"column {names.mask!r}: no mask"
            remedy = (
                "give the image its mask, all background where there is nothing, or take it out"
            )
            mistakes.append(UserError(what, where=f"{cells.where}:{line}", remedy=remedy))
    raise_mistakes(mistakes)
    return files


def file_at(cells: Cells, name: str) -> str:
    """Return the file that a path in a list is of: it begins at the list's own folder."""
    return os.path.normpath(os.path.join(Path(cells.where).parent, name))


def choose_label_columns(
    cells: Cells, names: ManifestColumns, targets: Sequence[str]
) -> tuple[str, ...]:
    """Return the columns that hold a list's labels: the one that it calls so; where it has none, or
    the plan names several, the plan's.
    """
    if len(targets) > 1 or (names.label not in cells.header and set(targets) & set(cells.header)):
        return tuple(targets)
    return (names.label,)


def list_entries(
    cells: Cells, names: ManifestColumns, label_columns: Sequence[str]
) -> list[ImageEntry]:
    """Return an image for each row; raise everything that is wrong with them at once."""
    rows = len(cells.rows)
    splits = cells.column(names.split) if names.split in cells.header else [None] * rows
    labels = join_labels([cells.column(name) for name in label_columns]) or [""] * rows
    columns = (cells.lines, cells.column(names.path), labels, splits)
    entries: list[ImageEntry] = []
    mistakes: list[UserError] = []
    # file → the line that lists it
    listed: dict[str, int] = {}
    for line, name, label, split in zip(*columns, strict=True):
        where = f"{cells.where}:{line}"
        file = file_at(cells, name)
        if not name:
            what = f"column {names.path!r}: no path"
            mistakes.append(UserError(what, where=where, remedy="take the row out"))
        elif file in listed:
            what = f"the file of line {listed[file]} once more"
            mistakes.append(UserError(what, where=where, remedy="list each image once"))
        if label_columns and label == "":
            what = f"column {label_columns[0]!r}: the label is missing"
            remedy = "give the image its label, or take the row out"
            mistakes.append(UserError(what, where=where, remedy=remedy))
        if split is not None and split.lower() not in SPLIT_NAMES:
            what = f"column {names.split!r}: {split[:20]!r} is no split"
            remedy = "write train, val or test in every row, or in none"
            mistakes.append(UserError(what, where=where, remedy=remedy))
        if len(mistakes) >= MOST_TOLD:
            break
        listed[file] = line
        own = None if split is None else SPLIT_NAMES.get(split.lower())
        entries.append(ImageEntry(file, label, own))
    raise_mistakes(mistakes)
    return entries


def _read(request: ReadRequest) -> Source:
    cells = read_cells(Path(request.path))
    return read_listed(request, cells, image_files(request.form), image_masks(request.form))


MANIFEST = Reader(
    "manifest",
    matches=has_suffix(".csv", ".csv.gz", *PARQUET_SUFFIXES),
    read=_read,
    options=lambda request: (request.manifest, request.form, request.masks),
    has_masks="asked",
)
