"""A folder of DICOM slices → one volume on the patient's axes, in the modality's own units.

A CT is in Hounsfield units (PS3.3 C.11.1, rescale). Slices are put in order by where they lie along
their normal (C.7.6.2), whatever the files are called; a folder is one series, whole and even.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.client.readers import dicom
from fedgraft.client.readers.folder_files import is_system
from fedgraft.client.readers.nifti import CUT_OFF, MOST_VOXELS
from fedgraft.client.readers.orientation import BrokenVolume, Scan, orient_scan

MOST_SLICES = 4096
# bytes of one slice's file
LARGEST_FILE = 2**26
# bytes that tell whether a file is DICOM
_FIRST_BYTES = 132
# unpacked before anybody can look at it
_DEFLATED = "1.2.840.10008.1.2.1.99"
# of the distance of slices, by which one may lie elsewhere than it should; and mm
_UNEVEN = 0.05
_SAME_PLACE = 0.01


@dataclass(frozen=True)
class Slice:
    """What the header of a slice says.

    Attributes:
        series: of which series it is.
        grid: everything that all slices of a volume have in common.
        rows, columns: direction of a column and of a row, each times the mm between pixels.
        place: of its first pixel, mm.
    """

    file: Path
    series: str
    grid: tuple[Any, ...]
    rows: np.ndarray
    columns: np.ndarray
    place: np.ndarray
    patient: str


def list_slices(folder: Path) -> list[Path]:
    """Return the DICOM files that lie in a folder itself, sorted by name."""
    files: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file() and not is_system(entry.name) and _is_dicom(entry.path):
                files.append(Path(entry.path))
    return sorted(files)


def _is_dicom(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return dicom.is_dicom(file.read(_FIRST_BYTES))
    except OSError:
        return False


def read_series(folder: Path) -> Scan:
    """Return the volume of a folder.

    Raises:
        BrokenVolume: it is no whole and even series; says why.
        FileNotFoundError, PermissionError: it is not there, or not for us.
    """
    files = list_slices(folder)
    if not files:
        raise BrokenVolume("a folder without DICOM slices")
    if len(files) > MOST_SLICES:
        raise BrokenVolume(f"more than {MOST_SLICES} slices")
    try:
        slices = [_read_header(file) for file in files]
        ordered, step = put_in_order(slices)
        height, width = ordered[0].grid[:2]
        if len(ordered) * height * width > MOST_VOXELS:
            raise BrokenVolume(f"more than {MOST_VOXELS:,} voxels")
        voxels = np.empty((len(ordered), height, width), np.float32)
        for number, each in enumerate(ordered):
            voxels[number] = _read_pixels(each)
    except (BrokenVolume, FileNotFoundError, PermissionError):
        raise
    except dicom.BROKEN as error:
        raise BrokenVolume(CUT_OFF) from error

    affine = np.eye(4)
    affine[:3, :3] = np.stack([step, ordered[0].rows, ordered[0].columns], axis=1)
    # DICOM's axes run to the patient's left and back
    affine[:2] *= -1
    affine[:3, 3] = ordered[0].place * [-1, -1, 1]
    return orient_scan([voxels], affine, ordered[0].patient)


def put_in_order(slices: Sequence[Slice]) -> tuple[list[Slice], np.ndarray]:
    """Return the slices along their normal, and the step from one to the next, mm `(3,)`.

    Raises:
        BrokenVolume: they are not of one series, one grid, or not evenly spaced.
    """
    if len({each.series for each in slices}) > 1:
        raise BrokenVolume("slices of several series in one folder; put each series into its own")
    if len({each.grid for each in slices}) > 1:
        raise BrokenVolume("slices of several sizes, directions or pixel spacings")
    if len({each.patient for each in slices}) > 1:
        raise BrokenVolume("slices of several patients in one folder")
    if len(slices) < 2:
        raise BrokenVolume("one slice, which is no volume")
    normal = np.cross(slices[0].columns, slices[0].rows)
    normal /= np.linalg.norm(normal)
    ordered = sorted(slices, key=lambda each: float(each.place @ normal))
    places = np.stack([each.place for each in ordered])
    gaps = np.diff(places @ normal)
    if gaps.min() < _SAME_PLACE:
        raise BrokenVolume("two slices at one place")
    usual = float(np.median(gaps))
    if gaps.max() > (2 - _UNEVEN) * usual:
        raise BrokenVolume("slices are missing between others")
    step = (places[-1] - places[0]) / (len(places) - 1)
    line = places[0] + np.arange(len(places))[:, None] * step
    if np.abs(places - line).max() > _UNEVEN * usual:
        raise BrokenVolume("slices that are not evenly spaced")
    return ordered, step


def _read_header(file: Path) -> Slice:
    pydicom = dicom.import_pydicom()
    if file.stat().st_size > LARGEST_FILE:
        raise BrokenVolume(f"a slice of more than {LARGEST_FILE:,} bytes")
    meta = pydicom.filereader.read_file_meta_info(file)
    if str(meta.get("TransferSyntaxUID")) == _DEFLATED:
        raise BrokenVolume("deflated DICOM; export uncompressed")
    data = pydicom.dcmread(file, stop_before_pixels=True)
    directions = _numbers(data, "ImageOrientationPatient", 6)
    spacing = _numbers(data, "PixelSpacing", 2)
    place = _numbers(data, "ImagePositionPatient", 3)
    if int(data.Rows) < 1 or int(data.Columns) < 1:
        raise BrokenVolume(CUT_OFF)
    if min(spacing) <= 0 or not np.isfinite([*directions, *spacing, *place]).all():
        raise BrokenVolume("slices that do not say where they lie")
    along = np.round([*directions, *spacing], 3)
    grid = (int(data.Rows), int(data.Columns), *along.tolist())
    return Slice(
        file=file,
        series=str(data.get("SeriesInstanceUID") or ""),
        grid=grid,
        rows=np.array(directions[3:]) * spacing[0],
        columns=np.array(directions[:3]) * spacing[1],
        place=np.array(place),
        patient=dicom.pseudonym_of(data),
    )


def _numbers(data: Any, name: str, count: int) -> list[float]:
    values = data.get(name)
    if values is None or len(values) != count:
        raise BrokenVolume("slices that do not say where they lie")
    return [float(value) for value in values]


def _read_pixels(each: Slice) -> np.ndarray:
    """Return the values of a slice in the modality's units, float32 `(H, W)`."""
    data = dicom.read_dataset(each.file.read_bytes())
    problem = dicom.problem_of(data)
    if problem:
        raise BrokenVolume(problem)
    if data.PhotometricInterpretation != "MONOCHROME2":
        raise BrokenVolume("slices in colour, or inverted")
    stored = data.pixel_array
    if stored.shape != each.grid[:2]:
        raise BrokenVolume(CUT_OFF)
    slope, intercept = dicom.rescale_of(data)
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
