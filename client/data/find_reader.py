"""Which reader a hospital's data is read by."""

from __future__ import annotations

from pathlib import Path

from fedgraft.client.readers.reader import Reader
from fedgraft.client.readers.reader_table import READERS
from fedgraft.common.errors import UserError


def find_reader(path: str, format_: str | None, material: str) -> Reader:
    """Return the reader of a format, or the one that knows the path.

    Args:
        format_: as node.yaml names it; None: told from the path.
        material: what the plan's task is about. A table for a task with images is a manifest, and
            one for a task with texts holds them.

    Raises:
        UserError: no such format, or no reader knows the path.
    """
    if format_ is None:
        return _matching(path, material)
    if format_ not in READERS:
        remedy = f"write one of {', '.join(READERS.names)}"
        raise UserError(f"data.format {format_!r}", where=path, remedy=remedy)
    return READERS[format_]


def _matching(path: str, material: str) -> Reader:
    matching = [reader for reader in READERS.values() if reader.matches(path)]
    for reader in matching:
        if reader.gives(path).material == material:
            return reader
    if matching:
        return matching[0]
    remedy = "give a .npz, .csv or .parquet file, a folder of class folders, or sklearn:digits"
    what = f"data of unknown format {Path(path).suffix.lower()!r}"
    if not Path(path).exists():
        what = "no such file or folder"
    raise UserError(what, where=path, remedy=remedy)
