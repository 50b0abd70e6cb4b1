"""Image files in class folders: `folder/<class>/*.png`, or `folder/train/<class>/…` with its own
splits.

Below a class folder the files may lie as deep as they like. A folder of DICOM files is read in the
same way, whatever the files are called; whose each image is stands in the files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from fedgraft.client.readers.dicom import is_dicom
from fedgraft.client.readers.files import SPLIT_NAMES, Entry, file_source
from fedgraft.client.readers.image_file import SUFFIXES
from fedgraft.client.readers.source import Source, plain, unreadable
from fedgraft.common.errors import UserError

DICOM_SUFFIXES = (".dcm", ".dicom")
_LOOKED_AT = 50  # files that tell whether a folder is one of DICOM files


def read_folder(path: Path, *, dicom: bool = False, cache: Path | None = None) -> Source:
    """Every usable image below a folder of class folders; the folder's name is the label.

    Args:
        dicom: whether to read DICOM files and no others.
        cache: folder for the memory of what was seen, see `client/readers/files.py`.

    Raises:
        UserError: no such folder, no class folders, or no readable image.
    """
    wanted: Callable[[str], bool] = _may_be_dicom if dicom else _is_image
    tops = {name: SPLIT_NAMES.get(name.lower()) for name in _folders(path)}
    own = "train" in tops.values()
    entries = []
    for top, split in sorted(tops.items()) if own else [("", None)]:
        if own and split is None:
            continue
        for label in _folders(path / top):
            files = sorted(file for file in walk(path / top / label) if wanted(file))
            entries += [Entry(file, plain(label), split) for file in files]
    if not entries:
        kind = "DICOM files" if dicom else f"{', '.join(SUFFIXES[:3])} files"
        remedy = (
            f"put {kind} into one folder a class: {path.name}/<class>/image, or list them in a"
            " manifest (.csv)"
        )
        raise UserError("no images in class folders", where=str(path), remedy=remedy)
    return file_source(str(path), entries, cache=cache)


def holds_dicom(path: Path) -> bool:
    """Whether a folder's first files are DICOM files rather than other images."""
    for file in islice(walk(path), _LOOKED_AT):
        if _is_image(file):
            return False
        if _may_be_dicom(file):
            return True
    return False


def walk(path: Path) -> Iterator[str]:
    """Every file below a folder but hidden ones, as text: a hundred thousand `Path` objects take
    long to make.
    """
    for folder, below, files in os.walk(path):
        below[:] = sorted(name for name in below if name[0] != ".")
        for name in sorted(files):
            if name[0] != ".":
                yield os.path.join(folder, name)


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as found:
            return sorted(entry.name for entry in found if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise unreadable(path, error) from None


def _is_image(file: str) -> bool:
    return file.lower().endswith(SUFFIXES)


def _may_be_dicom(file: str) -> bool:
    """By its suffix or its first bytes: scanners write names such as `IM000001`. Not the index of a
    CD, DICOMDIR.
    """
    if file.lower().endswith(DICOM_SUFFIXES):
        return True
    if os.path.basename(file).upper() == "DICOMDIR":
        return False
    try:
        with open(file, "rb") as opened:
            return is_dicom(opened.read(132))
    except OSError:
        return False
