"""Image files in class folders: `folder/<class>/*.png`, or `folder/train/<class>/…` with its own
splits.

Below a class folder the files may lie as deep as they like. A folder of DICOM files is read in the
same way, whatever the files are called; whose each image is stands in the files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from fedgraft.client.readers.dicom import is_dicom
from fedgraft.client.readers.files import SPLIT_NAMES, file_source
from fedgraft.client.readers.image_file import SUFFIXES
from fedgraft.client.readers.looked_at import ImageEntry
from fedgraft.client.readers.reader import Reader, ReadRequest, Stamp, stamp_of
from fedgraft.client.readers.source import Source, unreadable
from fedgraft.common.errors import UserError
from fedgraft.common.tasks.labels import plain_label

DICOM_SUFFIXES = (".dcm", ".dicom")
# files that tell whether a folder is one of DICOM files
_LOOKED_AT = 50
# bytes that tell whether a file is
_FIRST_BYTES = 132


def read_folder(path: Path, *, dicom: bool = False, cache: Path | None = None) -> Source:
    """Return every usable image below a folder of class folders; the folder's name is the label.

    Args:
        dicom: whether to read DICOM files and no others.
        cache: folder for the memory of what was seen, see `client/readers/files.py`.

    Raises:
        UserError: no such folder, no class folders, or no readable image.
    """
    belongs = _may_be_dicom if dicom else _is_image
    entries = []
    for folder, split in _split_folders(path):
        for label in _folders(folder):
            files = sorted(filter(belongs, walk(folder / label)))
            entries += [ImageEntry(file, plain_label(label), split) for file in files]
    if not entries:
        kind = "DICOM" if dicom else ", ".join(SUFFIXES[:3])
        remedy = (
            f"put {kind} files into one folder a class: {path.name}/<class>/image, or list them in"
            " a manifest (.csv)"
        )
        raise UserError("no images in class folders", where=str(path), remedy=remedy)
    return file_source(str(path), entries, cache=cache)


def _split_folders(path: Path) -> list[tuple[Path, str | None]]:
    """Return the folders that hold class folders, each with its split; None: it has none."""
    folders: list[tuple[Path, str | None]] = []
    for name in _folders(path):
        split = SPLIT_NAMES.get(name.lower())
        if split is not None:
            folders.append((path / name, split))
    if any(split == "train" for _, split in folders):
        return folders
    return [(path, None)]


def holds_dicom(path: Path) -> bool:
    """Return whether a folder's first files are DICOM files rather than other images."""
    for file in islice(walk(path), _LOOKED_AT):
        if _is_image(file):
            return False
        if _may_be_dicom(file):
            return True
    return False


def walk(path: Path) -> Iterator[str]:
    """Give every file below a folder but hidden ones, as text.

    A hundred thousand `Path` objects take long to make.
    """
    for folder, below, files in os.walk(path):
        below[:] = sorted(name for name in below if name[0] != ".")
        for name in sorted(files):
            if name[0] != ".":
                yield os.path.join(folder, name)


def _folders(path: Path) -> list[str]:
    """Return the names of the folders in a folder but hidden ones, sorted."""
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError as error:
        raise unreadable(path, error) from None
    return sorted(name for name in names if name[0] != ".")


def _is_image(file: str) -> bool:
    return file.lower().endswith(SUFFIXES)


def _may_be_dicom(file: str) -> bool:
    """Return whether a file is one by its suffix or its first bytes.

    Scanners write names such as `IM000001`. Not the index of a CD, DICOMDIR.
    """
    if file.lower().endswith(DICOM_SUFFIXES):
        return True
    if os.path.basename(file).upper() == "DICOMDIR":
        return False
    try:
        with open(file, "rb") as opened:
            return is_dicom(opened.read(_FIRST_BYTES))
    except OSError:
        return False


def _stamp(path: str) -> Stamp:
    """Return what changes when files come or go; each file is looked at when it is read."""
    folders = [folder for folder, _, _ in os.walk(path)]
    return stamp_of(folders or [path])


def _read_images(request: ReadRequest) -> Source:
    return read_folder(Path(request.path), cache=request.cache)


def _read_dicom(request: ReadRequest) -> Source:
    return read_folder(Path(request.path), dicom=True, cache=request.cache)


def _is_image_folder(path: str) -> bool:
    return os.path.isdir(path) and not holds_dicom(Path(path))


def _is_dicom_folder(path: str) -> bool:
    return os.path.isdir(path) and holds_dicom(Path(path))


IMAGE_FOLDER = Reader("image-folder", _is_image_folder, read=_read_images, stamp=_stamp)
DICOM_FOLDER = Reader("dicom", _is_dicom_folder, read=_read_dicom, stamp=_stamp)
