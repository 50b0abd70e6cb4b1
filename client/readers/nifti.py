"""One NIfTI file (`.nii`, `.nii.gz`) → voxels on the patient's axes.

The header is read first, and of the file no more bytes than it can need: a header that claims too
much, and a small file that unpacks to a large one, cost nothing.
"""

from __future__ import annotations

import gzip
import importlib
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from fedgraft.client.readers.orientation import BrokenVolume, Scan, orient_scan
from fedgraft.common.errors import UserError

SUFFIXES = (".nii", ".nii.gz")
# of a volume as it lies in a file: 512 voxels each way
MOST_VOXELS = 2**27
CUT_OFF = "cut off or corrupt"
# bytes: the header of NIfTI-1 and NIfTI-2, and where voxels begin at the latest
_FIRST = 348
_SECOND = 540
_LATEST = 2**24
_MM = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
_BROKEN = (OSError, EOFError, zlib.error, ValueError, struct.error, KeyError, OverflowError)


def is_nifti(name: str) -> bool:
    """Return whether a file is called as NIfTI files are."""
    return name.lower().endswith(SUFFIXES)


def import_nibabel() -> Any:
    """Return nibabel's module of NIfTI headers. Raise `UserError` where it is not installed."""
    try:
        importlib.import_module("nibabel.nifti2")
        return importlib.import_module("nibabel")
    except ImportError as error:
        raise UserError(
            "NIfTI files, and nibabel is not installed",
            where="data.path",
            remedy="pip install 'fedgraft[volumes]'",
        ) from error


def read_nifti(path: Path, channels: int = 1) -> Scan:
    """Return a file's images on the patient's axes.

    Args:
        channels: how many images it has, behind the three axes of space.

    Raises:
        BrokenVolume: it cannot be used; says why.
        FileNotFoundError, PermissionError: it is not there, or not for us.
    """
    nibabel = import_nibabel()
    try:
        with _open(path) as file:
            return _read(file, nibabel, channels)
    except (BrokenVolume, FileNotFoundError, PermissionError):
        raise
    except (*_BROKEN, nibabel.spatialimages.HeaderDataError) as error:
        raise BrokenVolume(CUT_OFF) from error


def _open(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _read(file: BinaryIO, nibabel: Any, channels: int) -> Scan:
    begin = file.read(_SECOND)
    header = _header_of(begin, nibabel)
    shape = _shape_of(header, channels)
    kind = header.get_data_dtype()
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise BrokenVolume("voxels that are no numbers, such as colours")
    offset = int(header["vox_offset"])
    if not _FIRST <= offset <= _LATEST:
        raise BrokenVolume(CUT_OFF)
    affine = _affine_of(header)

    needed = offset + math.prod(shape) * kind.itemsize
    # one byte more: at its end a packed file is compared with its checksum
    content = begin + file.read(max(0, needed + 1 - len(begin)))
    if len(content) < needed:
        raise BrokenVolume(CUT_OFF)
    stored = np.frombuffer(content, kind, math.prod(shape), offset).reshape(shape, order="F")
    with np.errstate(all="ignore"):
        voxels = stored.astype(np.float32)
        slope, intercept = header.get_slope_inter()
        if slope is not None:
            voxels = voxels * np.float32(slope) + np.float32(intercept)
    return orient_scan([voxels[..., image] for image in range(channels)], affine)


def _header_of(begin: bytes, nibabel: Any) -> Any:
    """Return the header of the first bytes of a file."""
    size = begin[:4]
    sizes = {struct.pack(f"{end}i", length): length for end in "<>" for length in (_FIRST, _SECOND)}
    length = sizes.get(size)
    if length is None or len(begin) < length:
        raise BrokenVolume("no NIfTI file")
    header_type = nibabel.Nifti1Header if length == _FIRST else nibabel.Nifti2Header
    header = header_type(begin[:length], check=False)
    if not bytes(header["magic"]).startswith(b"n+"):
        raise BrokenVolume("a NIfTI header without voxels (.hdr and .img); export as .nii")
    return header


def _shape_of(header: Any, channels: int) -> tuple[int, ...]:
    """Return the sides of a volume, and how many images there are of it."""
    shape = tuple(int(side) for side in header.get_data_shape())
    images = math.prod(shape[3:])
    # a fourth axis of one volume is none
    if len(shape) < 3 or (channels == 1 and images != 1):
        raise BrokenVolume(f"{len(shape)} axes: a series or a slice; export one volume with three")
    if images != channels:
        raise BrokenVolume(f"another number of images than {channels}, which the plan wants")
    shape = (*shape[:3], images)
    if min(shape) < 1:
        raise BrokenVolume(CUT_OFF)
    if math.prod(shape) > MOST_VOXELS:
        raise BrokenVolume(f"more than {MOST_VOXELS:,} voxels")
    return shape


def _affine_of(header: Any) -> np.ndarray:
    """Return place of a voxel → mm to the right, to the front and up."""
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        raise BrokenVolume("it does not say how it lies (neither sform nor qform)")
    unit, _ = header.get_xyzt_units()
    affine = header.get_best_affine().astype(np.float64)
    affine[:3] *= _MM[unit]
    return affine
