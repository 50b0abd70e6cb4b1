"""Volumes in class folders or in a list: NIfTI files, and folders of DICOM slices.

    folder/<class>/p001.nii.gz, folder/<class>/p002/*.dcm       path,label,patient
    folder/train/<class>/…, with its own splits                  scans/p001.nii.gz,ill,p001

Below a class folder volumes may lie as deep as they like; a folder that holds DICOM files is one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fedgraft.client.readers.dicom_series import list_slices
from fedgraft.client.readers.files import file_source
from fedgraft.client.readers.folder import class_folders, stamp_folders
from fedgraft.client.readers.folder_files import is_system
from fedgraft.client.readers.looked_at import ImageEntry
from fedgraft.client.readers.manifest import read_listed
from fedgraft.client.readers.nifti import is_nifti
from fedgraft.client.readers.reader import (
    Content,
    Reader,
    ReadRequest,
    has_suffix,
)
from fedgraft.client.readers.source import Source
from fedgraft.client.readers.table_cells import PARQUET_SUFFIXES, read_cells
from fedgraft.client.readers.volume_file import VOLUME_FILES
from fedgraft.common.errors import UserError
from fedgraft.common.tasks.labels import plain_label

VOLUMES = Content("volume", "volumes")
_OTHERS = "files that are no volumes"


def list_volumes(folder: Path) -> tuple[list[Path], int]:
    """Return NIfTI files and folders of DICOM slices below a folder, sorted, and how many other
    files there are.
    """
    volumes: list[Path] = []
    others = 0
    for place, files in _walk(folder):
        slices = list_slices(place)
        if slices:
            volumes.append(place)
        nifti = [place / name for name in files if is_nifti(name)]
        volumes += nifti
        others += len(files) - len(slices) - len(nifti)
    return sorted(volumes), others


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder and the names of its files, without what belongs to the system."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_system(name))
        yield Path(place), [name for name in files if not is_system(name)]


def _read_folder(request: ReadRequest) -> Source:
    """Return every usable volume below class folders; the folder's name is the label."""
    path = Path(request.path)
    entries: list[ImageEntry] = []
    beside: Counter[str] = Counter()
    for folder, label, split in class_folders(path):
        volumes, others = list_volumes(folder)
        beside[_OTHERS] += others
        entries += [ImageEntry(str(file), plain_label(label), split) for file in volumes]
    if not entries:
        remedy = (
            f"put .nii or .nii.gz files, or folders of DICOM slices, into one folder a class:"
            f" {path.name}/<class>/…, or list them in a manifest (.csv)"
        )
        raise UserError("no volumes in class folders", where=str(path), remedy=remedy)
    return file_source(
        str(path), entries, reading=request.reading, beside=+beside, kind=VOLUME_FILES
    )


def _read_manifest(request: ReadRequest) -> Source:
    """Return the volumes that a manifest lists, in its order."""
    return read_listed(request, read_cells(Path(request.path)), VOLUME_FILES)


VOLUME_FOLDER = Reader(
    "volume-folder",
    matches=os.path.isdir,
    read=_read_folder,
    gives=lambda _: VOLUMES,
    stamp=stamp_folders,
)
VOLUME_MANIFEST = Reader(
    "volume-manifest",
    matches=has_suffix(".csv", ".csv.gz", *PARQUET_SUFFIXES),
    read=_read_manifest,
    gives=lambda _: VOLUMES,
    options=lambda request: request.manifest,
)
