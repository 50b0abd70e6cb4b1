"""Several images of one record in files of their own, such as the sequences of an MRI.

    p001/t1.nii.gz, p001/t2.nii.gz            or p001/BraTS_001_t1.nii.gz, …: how names end
    p001/t1/*.dcm, p001/t2/*.dcm              a folder of DICOM slices each
    t1,t2,label,patient                       a list with a column a sequence

They are put on one another as they are: nothing is moved, and what does not lie on one grid is
refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedgraft.client.readers.folder_files import is_system
from fedgraft.client.readers.nifti import SUFFIXES, is_nifti
from fedgraft.client.readers.orientation import BrokenVolume, Scan

# of a voxel, by which the corners of two grids may be apart
_APART = 0.1
# before a sequence's name, at the end of a longer one
_PARTED = ("_", "-", ".", " ")


def find_sequences(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return where each sequence of a record lies in its folder, in the order of the names.

    Raises:
        BrokenVolume: one is missing, or there several times.
    """
    entries = list(_list_entries(folder))
    places: list[Path] = []
    for name in names:
        own = [entry for entry in entries if _is_called(entry, name)]
        if not own:
            raise BrokenVolume(f"a record without its sequence {name}")
        if len(own) > 1:
            raise BrokenVolume(f"a record with several files of its sequence {name}")
        places += own
    return places


def list_images(folder: Path) -> list[Path]:
    """Return every NIfTI file and every folder that lies in a record's folder."""
    return [entry for entry in _list_entries(folder) if entry.is_dir() or is_nifti(entry.name)]


def list_records(folder: Path, names: Sequence[str]) -> tuple[list[Path], int]:
    """Return the folders below a folder that hold a record each, sorted, and how many files there
    are that are none of the sequences.
    """
    entries = list(_list_entries(folder))
    own = [entry for entry in entries if any(_is_called(entry, name) for name in names)]
    if own:
        files = [entry for entry in entries if entry.is_file() and entry not in own]
        return [folder], len(files)
    records: list[Path] = []
    others = 0
    for entry in entries:
        if not entry.is_dir():
            others += 1
            continue
        below, beside = list_records(entry, names)
        records += below
        others += beside
    return records, others


def stack_sequences(scans: Mapping[str, Scan]) -> Scan:
    """Return the images of a record as the channels of one, `(sequences, D, H, W)`.

    Raises:
        BrokenVolume: they are of several patients, or do not lie on the grid of the first.
    """
    first, *others = scans.values()
    for name, scan in list(scans.items())[1:]:
        if not is_on_grid(scan, first):
            raise BrokenVolume(
                f"its sequence {name} does not lie on the grid of the first (size, spacing and"
                " place); resample it there"
            )
    patients = {scan.patient for scan in scans.values() if scan.patient}
    if len(patients) > 1:
        raise BrokenVolume("sequences of several patients in one record")
    voxels = np.concatenate([first.voxels, *(scan.voxels for scan in others)])
    return Scan(voxels, first.spacing, first.grid, "".join(patients))


def is_on_grid(scan: Scan, first: Scan) -> bool:
    """Whether voxels lie where those of another scan do, to a tenth of one."""
    sides = first.voxels.shape[1:]
    if scan.voxels.shape[1:] != sides:
        return False
    # the first voxel, and the last one along each axis
    corners = np.vstack([np.zeros(3), np.diag(np.array(sides) - 1.0)])
    corners = np.hstack([corners, np.ones((4, 1))])
    apart = corners @ (scan.grid - first.grid)[:3].T
    return float(np.abs(apart).max()) <= _APART * min(first.spacing)


def _list_entries(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if not is_system(entry.name):
            yield entry


def _is_called(entry: Path, name: str) -> bool:
    """Whether a NIfTI file or a folder is called as a sequence, or its name ends so."""
    stem = entry.name.lower()
    if is_nifti(stem):
        stem = stem.removesuffix(SUFFIXES[1]).removesuffix(SUFFIXES[0])
    elif not entry.is_dir():
        return False
    wanted = name.lower()
    return stem == wanted or stem.endswith(tuple(part + wanted for part in _PARTED))
