"""One volume on a disc, a NIfTI file or a folder of DICOM slices: looked at, and read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedgraft.client.readers.dicom_series import Series, read_series
from fedgraft.client.readers.files import FileKind
from fedgraft.client.readers.looked_at import FORBIDDEN, MISSING, ImageEntry, Look
from fedgraft.client.readers.nifti import is_nifti, read_nifti
from fedgraft.client.readers.orientation import BrokenVolume
from fedgraft.client.readers.source import Prepare, content_digest, digest
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch, concatenate
from fedgraft.common.inputs.volume import Volume


def read_volumes(
    files: Sequence[str | Path], prepare: Prepare | None = None, bits: int | None = None
) -> list[Volume] | Batch:
    """Return volumes, or what `prepare` makes of them; one after the other, as they are large.

    Raises:
        UserError: one cannot be used; names it.
    """
    if prepare is None:
        return [_read_or_say(Path(file)) for file in files]
    return concatenate([prepare([_read_or_say(Path(file))]) for file in files])


def look_at_volumes(where: str, entries: Sequence[ImageEntry], cache: Path | None) -> list[Look]:
    """Return what looking at each volume gives. Each is read: nothing is remembered yet."""
    return [_look_at(entry) for entry in entries]


def _look_at(entry: ImageEntry) -> Look:
    try:
        series = _read(Path(entry.file))
    except PermissionError:
        return Look(b"", FORBIDDEN)
    except BrokenVolume as error:
        return Look(b"", str(error))
    except (OSError, ValueError):
        return Look(b"", MISSING)
    # the same voxels are the same record, however they were packed
    hashed = hashlib.sha256(repr((series.voxels.shape, series.spacing)).encode())
    hashed.update(np.ascontiguousarray(series.voxels).data)
    content = hashed.digest()
    return Look(
        digest=digest(content, entry.label),
        problem="",
        patient=series.patient,
        content=content_digest(content),
    )


def _read_or_say(path: Path) -> Volume:
    try:
        series = _read(path)
    except BrokenVolume as error:
        remedy = "mend it, or take it out"
        raise UserError(
            f"a volume that cannot be used: {error}", where=str(path), remedy=remedy
        ) from error
    except (OSError, ValueError) as error:
        remedy = "give a .nii, a .nii.gz or a folder of DICOM slices that the node may read"
        what = f"cannot be read ({type(error).__name__})"
        raise UserError(what, where=str(path), remedy=remedy) from error
    values = torch.from_numpy(np.ascontiguousarray(series.voxels)[None])
    return Volume(values, series.spacing)


def _read(path: Path) -> Series:
    """Return a volume that is whole, finite and not blank. Raise `BrokenVolume` or `OSError`."""
    if path.is_dir():
        series = read_series(path)
    elif is_nifti(path.name):
        voxels, spacing = read_nifti(path)
        series = Series(voxels, spacing, "")
    elif path.exists():
        raise BrokenVolume("neither .nii, nor .nii.gz, nor a folder of DICOM slices")
    else:
        raise FileNotFoundError(path)
    low = series.voxels.min()
    high = series.voxels.max()
    # NaN is no number that another equals
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BrokenVolume("values that are not finite (NaN or infinity)")
    if low == high:
        raise BrokenVolume("blank: every voxel has one value")
    return series


VOLUME_FILES = FileKind(
    look=look_at_volumes, read=read_volumes, singular="volume", plural="volumes"
)
