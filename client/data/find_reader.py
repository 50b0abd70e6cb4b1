"""Which reader a hospital's data is read by."""

from __future__ import annotations

from pathlib import Path

from fedgraft.client.readers.reader import Reader
from fedgraft.client.readers.reader_table import READERS
from fedgraft.common.errors import UserError


def find_reader(
    path: str, format_: str | None, material: str, *, masks: bool = False, boxes: bool = False
) -> Reader:
    """Return the reader of a format, or the one that knows the path.

    Args:
        format_: as node.yaml names it; None: told from the path.
        material: what the plan's task is about. A table for a task with images is a manifest, and
            one for a task with texts holds them.
        masks: whether the plan's task asks for the records' masks.
        boxes: whether it asks for their boxes.

    Raises:
        UserError: no such format, or no reader knows the path.
    """
    if format_ is None:
        return _matching(path, material, masks=masks, boxes=boxes)
    if format_ not in READERS:
        remedy = f"write one of {', '.join(READERS.names)}"
        raise UserError(f"data.format {format_!r}", where=path, remedy=remedy)
    reader = READERS[format_]
    if reader.has_boxes != boxes:
        what = f"data.format {format_!r} has no boxes, and the plan's task is about them"
        if not boxes:
            what = f"data.format {format_!r} has boxes, and the plan's task is not about them"
        raise UserError(what, where=path, remedy="leave data.format out, or take another plan")
    if not _may_have(reader, masks=masks):
        what = f"data.format {format_!r} has no masks, and the plan's task is about them"
        if not masks:
            what = f"data.format {format_!r} has masks, and the plan's task is about labels"
        raise UserError(what, where=path, remedy="leave data.format out, or take another plan")
    return reader


def _may_have(reader: Reader, *, masks: bool) -> bool:
    """Whether a reader reads what is asked of it: records with masks, or with labels."""
    return reader.has_masks != ("never" if masks else "always")


def _matching(path: str, material: str, *, masks: bool, boxes: bool) -> Reader:
    matching = [
        reader
        for reader in READERS.values()
        if reader.has_boxes == boxes and _may_have(reader, masks=masks) and reader.matches(path)
    ]
    for reader in matching:
        if reader.gives(path).material == material:
            return reader
    if matching:
        return matching[0]
    remedy = "give a .npz, .csv or .parquet file, a folder of class folders, or sklearn:digits"
    if masks:
        remedy = (
            "give a list (.csv) with path and mask, a folder with images/ and masks/, or an .npz"
        )
    if boxes:
        remedy = "give a file in COCO's format (.json): images, annotations, categories"
    what = f"data of unknown format {Path(path).suffix.lower()!r}"
    if not Path(path).exists():
        what = "no such file or folder"
    raise UserError(what, where=path, remedy=remedy)
