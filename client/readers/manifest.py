"""A list of image files: CSV or Parquet with a row an image, its path, its label, and what else is
known.

    path,label,patient,split
    p001/a.png,normal,p001,train

Paths begin at the manifest's own folder. Images may be of any format, DICOM too. The column of
patients and the one of splits may be missing; other columns are for `partition: {kind: column}`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from fedgraft.client.readers.files import SPLIT_NAMES, Entry, file_source
from fedgraft.client.readers.source import Source, did_you_mean, plain
from fedgraft.client.readers.table_file import MOST_TOLD, read_cells
from fedgraft.common.errors import UserError, UserErrors


class ManifestColumns(NamedTuple):
    """What the columns of a manifest are called."""

    path: str = "path"
    label: str = "label"
    split: str = "split"


USUAL = ManifestColumns()


def read_manifest(
    path: Path, names: ManifestColumns = USUAL, *, cache: Path | None = None
) -> Source:
    """The images that a manifest lists, in its order; files that cannot be used are left out and
    counted.

    Raises:
        UserError: it cannot be read, lacks a column, or a row says no path, no label, or an unknown
            split; a file that is listed twice.
    """
    header, lines, rows = read_cells(path)
    for name in (names.path, names.label):
        if name not in header:
            raise UserError(
                f"no column {name!r}{did_you_mean(name, header)}",
                where=f"{path}:1",
                remedy=f"the file has {', '.join(header[:40])}; say in node.yaml which is which: "
                "data.columns: {path: …, label: …, split: …}",
            )
    file_at, label_at = header.index(names.path), header.index(names.label)
    split_at = header.index(names.split) if names.split in header else None
    entries, mistakes, listed = [], [], {}
    for line, row in zip(lines, rows, strict=True):
        where, split = f"{path}:{line}", None
        file = os.path.normpath(os.path.join(path.parent, row[file_at].strip()))
        if not row[file_at].strip():
            mistakes.append(
                UserError(f"column {names.path!r}: no path", where=where, remedy="take the row out")
            )
        elif file in listed:
            what = f"the file of line {listed[file]} once more"
            mistakes.append(UserError(what, where=where, remedy="list each image once"))
        listed[file] = line
        if not row[label_at].strip():
            remedy = "give the image its label, or take the row out"
            mistakes.append(
                UserError(
                    f"column {names.label!r}: the label is missing", where=where, remedy=remedy
                )
            )
        if (
            split_at is not None
            and (split := SPLIT_NAMES.get(row[split_at].strip().lower())) is None
        ):
            what = f"column {names.split!r}: {row[split_at].strip()[:20]!r} is no split"
            mistakes.append(
                UserError(
                    what, where=where, remedy="write train, val or test in every row, or in none"
                )
            )
        if len(mistakes) >= MOST_TOLD:
            break
        entries.append(Entry(file, plain(row[label_at]), split))
    if mistakes:
        raise mistakes[0] if len(mistakes) == 1 else UserErrors(mistakes)
    columns = {name: [row[at].strip() for row in rows] for at, name in enumerate(header)}
    places = [f"{path}:{line}" for line in lines]
    return file_source(str(path), entries, columns=columns, places=places, cache=cache)
