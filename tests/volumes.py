"""Volumes with known truth, written as hospitals have them: NIfTI files and DICOM series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def body(sides: Sequence[int], spacing: Sequence[float], radius: float, seed: int = 0) -> Any:
    """Return a ball (intensity 100, radius in mm) in noise around 0: axes right, front, head.

    It lies off the middle, to the front, so that a wrong orientation is seen.
    """
    rng = np.random.default_rng(seed)
    axes = []
    for side, step, shift in zip(sides, spacing, (0, 4, 0), strict=True):
        axes.append((np.arange(side) - (side - 1) / 2) * step - shift)
    right, front, head = np.meshgrid(*axes, indexing="ij")
    inside = right**2 + front**2 + head**2 <= radius**2
    return (100.0 * inside + rng.normal(0, 10, inside.shape)).astype(np.float32)


def write_nifti(
    path: Path, voxels: np.ndarray, spacing: Sequence[float], axes: str = "RAS"
) -> None:
    """Write voxels on axes right, front, head, turned into another orientation of the file."""
    affine = np.diag([*spacing, 1.0])
    image: Any = nibabel.Nifti1Image(voxels, affine)
    wanted = nibabel.orientations.axcodes2ornt(tuple(axes))
    here = nibabel.orientations.axcodes2ornt(("R", "A", "S"))
    image = image.as_reoriented(nibabel.orientations.ornt_transform(here, wanted))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def write_series(
    folder: Path, voxels: np.ndarray, spacing: Sequence[float], patient: str = "p1"
) -> list[Path]:
    """Write voxels on axes right, front, head as axial CT slices with a rescale of −1024, the files
    called in another order than they lie in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = generate_uid()
    files: list[Path] = []
    slices = voxels.shape[2]
    for number in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{(number * 7) % slices:03d}-{number}.dcm"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID = CTImageStorage
        data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        data.PatientID = patient
        data.Modality = "CT"
        data.SeriesInstanceUID = series
        # rows run to the patient's back, columns to the left
        plane = voxels[::-1, ::-1, number].T
        data.Rows, data.Columns = plane.shape
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [0, 0, number * spacing[2]]
        data.PixelSpacing = [spacing[1], spacing[0]]
        data.SamplesPerPixel = 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated = 16
        data.BitsStored = 16
        data.HighBit = 15
        data.PixelRepresentation = 0
        data.RescaleSlope = 0.5
        data.RescaleIntercept = -1024
        stored = np.round((plane + 1024) / 0.5).astype(np.uint16)
        data.PixelData = stored.tobytes()
        pydicom.dcmwrite(path, data, enforce_file_format=True)
        files.append(path)
    return files
