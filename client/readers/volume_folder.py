"""Volumes in class folders or in a list: NIfTI files, and folders of DICOM slices.

    folder/<class>/p001.nii.gz, folder/<class>/p002/*.dcm       path,label,patient
    folder/train/<class>/…, with its own splits                  scans/p001.nii.gz,ill,p001

Where a plan names sequences, a record is a folder with a file of each, or a row with a column of
each: `client/readers/sequences.py`.

Below a class folder volumes may lie as deep as they like; a folder that holds DICOM files is one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fedgraft.client.readers.dicom_series import list_slices
from fedgraft.client.readers.files import file_source
from fedgraft.client.readers.folder import class_folders, stamp_folders
from fedgraft.client.readers.folder_files import is_system
from fedgraft.client.readers.looked_at import ImageEntry
from fedgraft.client.readers.manifest import file_at, read_listed
from fedgraft.client.readers.mask_source import volume_masks
from fedgraft.client.readers.nifti import is_nifti
from fedgraft.client.readers.reader import (
    Content,
    Reader,
    ReadRequest,
    has_suffix,
)
from fedgraft.client.readers.scan_form import ONE_IMAGE, ScanForm
from fedgraft.client.readers.sequences import list_records
from fedgraft.client.readers.source import Source
from fedgraft.client.readers.table_cells import (
    PARQUET_SUFFIXES,
    Cells,
    raise_mistakes,
    read_cells,
)
from fedgraft.client.readers.volume_file import Parts, volume_files
from fedgraft.common.errors import UserError
from fedgraft.common.tasks.labels import plain_label

VOLUMES = Content("volume", "volumes")
_OTHERS = "files that are no volumes"


def list_volumes(folder: Path, form: ScanForm = ONE_IMAGE) -> tuple[list[Path], int]:
    """Return NIfTI files and folders of DICOM slices below a folder, sorted, and how many other
    files there are; where records have several sequences, the folders with a record each.
    """
    if form.sequences:
        return list_records(folder, form.sequences)
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
        volumes, others = list_volumes(folder, request.scan)
        beside[_OTHERS] += others
        entries += [ImageEntry(str(file), plain_label(label), split) for file in volumes]
    if not entries:
        remedy = (
            f"put .nii or .nii.gz files, or folders of DICOM slices, into one folder a class:"
            f" {path.name}/<class>/…, or list them in a manifest (.csv)"
        )
        if request.scan.sequences:
            first = request.scan.sequences[0]
            remedy = (
                f"put a folder a record into one folder a class: {path.name}/<class>/p001/"
                f"{first}.nii.gz, …, or list them in a manifest (.csv) with a column a sequence"
            )
        raise UserError("no volumes in class folders", where=str(path), remedy=remedy)
    kind = volume_files(request.scan)
    return file_source(str(path), entries, reading=request.reading, beside=+beside, kind=kind)


def _read_manifest(request: ReadRequest) -> Source:
    """Return the volumes that a manifest lists, in its order: a column of paths, or one a
    sequence.
    """
    cells = read_cells(Path(request.path))
    sequences = request.scan.sequences
    if not any(name in cells.header for name in sequences):
        return read_listed(request, cells, volume_files(request.scan), volume_masks(request.scan))
    first = replace(request, manifest=replace(request.manifest, path=sequences[0]))
    parts = list_parts(cells, sequences)
    return read_listed(
        first, cells, volume_files(request.scan, parts), volume_masks(request.scan, parts)
    )


def list_parts(cells: Cells, sequences: Sequence[str]) -> Parts:
    """Return the files of each row's sequences, by its first, and then others that it names.

    Raises:
        UserError: a column is missing, or a row says no path.
    """
    cells.check_columns(sequences, remedy="; backbone.volume.sequences says them")
    mistakes: list[UserError] = []
    parts: dict[str, list[str]] = {}
    columns = [cells.column(name) for name in sequences]
    for line, row, *names in zip(cells.lines, cells.rows, *columns, strict=True):
        files = [file_at(cells, name) for name in names]
        parts[files[0]] = files + _list_others(cells, row, files)
        if not all(names):
            what = f"column {sequences[names.index('')]!r}: no path"
            where = f"{cells.where}:{line}"
            mistakes.append(UserError(what, where=where, remedy="take the row out"))
    raise_mistakes(mistakes)
    return parts


def _list_others(cells: Cells, row: Sequence[str], files: Sequence[str]) -> list[str]:
    """Return volumes that a row names in other columns."""
    others: list[str] = []
    for cell in row:
        file = file_at(cells, cell.strip())
        if cell.strip() and file not in files and (is_nifti(file) or os.path.isdir(file)):
            others.append(file)
    return others


VOLUME_FOLDER = Reader(
    "volume-folder",
    matches=os.path.isdir,
    read=_read_folder,
    gives=lambda _: VOLUMES,
    stamp=stamp_folders,
    options=lambda request: request.scan,
)
VOLUME_MANIFEST = Reader(
    "volume-manifest",
    matches=has_suffix(".csv", ".csv.gz", *PARQUET_SUFFIXES),
    read=_read_manifest,
    gives=lambda _: VOLUMES,
    options=lambda request: (request.manifest, request.scan, request.masks),
    has_masks="asked",
)
