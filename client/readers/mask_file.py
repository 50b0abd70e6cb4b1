"""One mask on a disc: whole numbers that say of each place which class it is.

An image's mask is a PNG, BMP or TIFF with one number a pixel (grey, or a palette's), or a `.npy`; a
volume's is a NIfTI file, brought to the patient's axes as the volume is. JPEG changes numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.readers.image_array_file import SUFFIX as ARRAY
from fedgraft.client.readers.nifti import is_nifti, read_nifti
from fedgraft.client.readers.orientation import BrokenVolume, Scan
from fedgraft.client.readers.source import unreadable
from fedgraft.common.errors import UserError

PICTURES = (".png", ".bmp", ".tif", ".tiff")
SUFFIXES = (*PICTURES, ARRAY)
# numbers of 8 bits: classes, not nuclei that were counted
MOST = 255
# Pillow's modes with one number a pixel
_NUMBERED = ("1", "L", "P", "I;16", "I;16L", "I;16B", "I")
_NO_MASK = "give one whole number a pixel, the same for each class"


def is_mask(name: str) -> bool:
    """Return whether a file may be a mask by its name."""
    return name.lower().endswith(SUFFIXES) or is_nifti(name)


def read_image_mask(path: Path) -> Tensor:
    """Return the number of each pixel, uint8 `(H, W)`.

    Raises:
        UserError: it is missing, damaged, or no mask; names the file.
    """
    try:
        values = _read_array(path) if path.suffix.lower() == ARRAY else _read_picture(path)
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise UserError(f"no mask: {error}", where=str(path), remedy=_NO_MASK) from None
    return torch.from_numpy(as_numbers(values, str(path)))


def read_volume_mask(path: Path) -> Scan:
    """Return the number of each voxel on the patient's axes, whole numbers `(1, D, H, W)`.

    Raises:
        UserError: it is missing, damaged, or no mask; names the file.
    """
    try:
        if not is_nifti(path.name):
            raise BrokenVolume("neither .nii nor .nii.gz")
        scan = read_nifti(path)
    except OSError as error:
        raise unreadable(path, error) from None
    except BrokenVolume as error:
        remedy = "give a NIfTI file with one whole number a voxel"
        raise UserError(f"no mask: {error}", where=str(path), remedy=remedy) from None
    return Scan(as_numbers(scan.voxels, str(path)), scan.spacing, scan.grid, scan.patient)


def _read_picture(path: Path) -> np.ndarray:
    """Return the numbers of a picture. Raise OSError, or ValueError where pixels are colours."""
    from PIL import Image, ImageOps

    if path.suffix.lower() not in PICTURES:
        raise ValueError(f"{path.suffix or 'a name without ending'} keeps no exact numbers")
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in _NUMBERED:
            return np.asarray(image)
        colours = np.asarray(image.convert("RGB"))
    # grey that was saved as colour
    if (colours == colours[..., :1]).all():
        return colours[..., 0]
    raise ValueError("pixels in colour")


def _read_array(path: Path) -> np.ndarray:
    values = np.load(path, allow_pickle=False)
    if values.ndim != 2:
        raise ValueError(f"an array of shape {values.shape}; (H, W) is needed")
    return values


def as_numbers(values: np.ndarray, where: str) -> np.ndarray:
    """Return whole numbers from 0 to 255 as uint8. Raise `UserError` for others."""
    if values.dtype.kind not in "biuf":
        what = f"no mask: {values.dtype} values"
        raise UserError(what, where=where, remedy=_NO_MASK)
    low = float(values.min())
    high = float(values.max())
    # NaN fails the comparisons
    if not (low >= 0 and high <= MOST):
        what = f"values from {low:g} to {high:g} in a mask"
        remedy = f"number the classes 0 to {MOST}, not each object by itself"
        raise UserError(what, where=where, remedy=remedy)
    numbers = values.astype(np.uint8)
    if (numbers != values).any():
        what = "values in a mask that are no whole numbers"
        raise UserError(what, where=where, remedy=_NO_MASK)
    return np.ascontiguousarray(numbers)
