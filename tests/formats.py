"""The same X-rays as hospitals keep them: one archive, a folder of PNG, a Parquet manifest of TIFF,
a folder of DICOM.

Lossless, and in one order: a federation over any of them is the same federation.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

DATA = Path(os.environ.get("FEDGRAFT_DATA") or Path(__file__).parents[1].parent / "shared" / "data")
CLASSES = ("normal", "pneumonia")
Cases = dict[
    str, tuple[np.ndarray, np.ndarray]
]  # split → images (n, H, W) uint8, labels (n,), class by class


def as_archive(place: Path, cases: Cases) -> Path:
    arrays = {
        f"{split}_{name}": array
        for split, pair in cases.items()
        for name, array in zip(("images", "labels"), pair, strict=True)
    }
    np.savez(place / "xrays.npz", allow_pickle=False, **arrays)
    return place / "xrays.npz"


def as_folder(place: Path, cases: Cases) -> Path:
    for split, (images, labels) in cases.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = place / "xrays" / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:04}.png")
    return place / "xrays"


def as_manifest(place: Path, cases: Cases) -> Path:
    rows = []
    for split, (images, labels) in cases.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{split}{number}.tif"
            Image.fromarray(image).save(place / name)
            rows.append(
                {
                    "path": name,
                    "label": CLASSES[label],
                    "patient": f"{split}-{number // 3}",
                    "split": split,
                }
            )
    pandas.DataFrame(rows).to_parquet(place / "xrays.parquet")
    return place / "xrays.parquet"


def as_dicom(place: Path, cases: Cases) -> Path:
    """Negatives, as many X-ray machines store them: 255 − x under MONOCHROME1 is x."""
    for split, (images, labels) in cases.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = place / "xrays" / split / CLASSES[label] / "study"
            folder.mkdir(parents=True, exist_ok=True)
            negative = dicom(
                255 - image,
                PhotometricInterpretation="MONOCHROME1",
                patient=f"{split}-{number // 3}",
            )
            (folder / f"IM{number:04}").write_bytes(content(negative))
    return place / "xrays"


def dicom(pixels: np.ndarray, *, bits: int = 0, patient: str = "P-1", **tags: Any) -> Dataset:
    """A data set as a scanner writes it; `bits` stored of those allocated."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(
        entropy_srcs=["fedgraft"]
    )
    data.PatientID, data.Rows, data.Columns = (
        patient,
        pixels.shape[-2 if pixels.ndim == 2 else 0],
        pixels.shape[1],
    )
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = 8 * pixels.dtype.itemsize
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def content(data: Dataset) -> bytes:
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()
