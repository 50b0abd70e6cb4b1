"""Image files in class folders: `folder/<class>/*.png`, or `folder/train/<class>/…` with its own
splits.

Below a class folder the files may lie as deep as they like. A folder of DICOM files is read in the
same way, whatever the files are called; whose each image is stands in the files. What lies beside
them is counted: `client/readers/folder_files.py`.
"""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from fedgraft.client.readers.files import SPLIT_NAMES, file_source, image_files
from fedgraft.client.readers.folder_files import is_image, is_system, may_be_dicom, sort_files, walk
from fedgraft.client.readers.image_file import SUFFIXES
from fedgraft.client.readers.looked_at import ImageEntry
from fedgraft.client.readers.pixel_form import AS_USUAL, PixelForm
from fedgraft.client.readers.reader import Reader, ReadRequest, Stamp, stamp_of
from fedgraft.client.readers.source import Source, unreadable
from fedgraft.common.errors import UserError
from fedgraft.common.plan.reading_section import UNDECIDED, ReadingSection
from fedgraft.common.tasks.labels import plain_label

# files that tell whether a folder is one of DICOM files
_LOOKED_AT = 50


def read_folder(
    path: Path,
    *,
    cache: Path | None = None,
    reading: ReadingSection = UNDECIDED,
    form: PixelForm = AS_USUAL,
) -> Source:
    """Return every usable image below a folder of class folders; the folder's name is the label.

    Args:
        cache: folder for the memory of what was seen, see `client/readers/files.py`.
        reading: what a person has decided about the files.
        form: what the plan says of channels and windows.

    Raises:
        UserError: no such folder, no class folders, no readable image, or files of which somebody
            must say whether they are records.
    """
    # by class folder, in order
    places: dict[str, tuple[str, str | None]] = {}
    for folder, label, split in class_folders(path):
        places[str(folder)] = (label, split)
    files = sort_files(str(path), list(places), reading.leave_out)

    entries = []
    for place, (label, split) in places.items():
        own = sorted([*files.images.get(place, ()), *files.dicom.get(place, ())])
        entries += [ImageEntry(file, plain_label(label), split) for file in own]
    if not entries:
        remedy = (
            f"put {', '.join(SUFFIXES[:3])}, .npy or DICOM files into one folder a class:"
            f" {path.name}/<class>/image, or list them in a manifest (.csv)"
        )
        raise UserError("no images in class folders", where=str(path), remedy=remedy)
    return file_source(
        str(path),
        entries,
        cache=cache,
        reading=reading,
        beside=files.beside,
        kind=image_files(form),
    )


def class_folders(path: Path) -> list[tuple[Path, str, str | None]]:
    """Return the class folders of a data set, each with its label and its split, if it has one."""
    folders: list[tuple[Path, str, str | None]] = []
    for folder, split in _split_folders(path):
        folders += [(folder / label, label, split) for label in _folders(folder)]
    return folders


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
    for file in islice(walk(str(path)), _LOOKED_AT):
        if is_image(file):
            return False
        if may_be_dicom(file):
            return True
    return False


def _folders(path: Path) -> list[str]:
    """Return the names of the folders in a folder but those of the system, sorted."""
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError as error:
        raise unreadable(path, error) from None
    return sorted(name for name in names if not is_system(name))


def stamp_folders(path: str) -> Stamp:
    """Return what changes when files come or go; each file is looked at when it is read."""
    folders = [folder for folder, _, _ in os.walk(path)]
    return stamp_of(folders or [path])


def _read(request: ReadRequest) -> Source:
    return read_folder(
        Path(request.path), cache=request.cache, reading=request.reading, form=request.form
    )


def _is_image_folder(path: str) -> bool:
    return os.path.isdir(path) and not holds_dicom(Path(path))


def _is_dicom_folder(path: str) -> bool:
    return os.path.isdir(path) and holds_dicom(Path(path))


def _options(request: ReadRequest) -> PixelForm:
    return request.form


IMAGE_FOLDER = Reader(
    "image-folder", _is_image_folder, read=_read, stamp=stamp_folders, options=_options
)
DICOM_FOLDER = Reader("dicom", _is_dicom_folder, read=_read, stamp=stamp_folders, options=_options)
