"""One volume on a disc, a NIfTI file or a folder of DICOM slices: looked at, and read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from fedgraft.client.readers.dicom_series import read_series
from fedgraft.client.readers.files import FileKind
from fedgraft.client.readers.looked_at import FORBIDDEN, MISSING, ImageEntry, Look
from fedgraft.client.readers.nifti import is_nifti, read_nifti
from fedgraft.client.readers.orientation import BrokenVolume, Scan
from fedgraft.client.readers.scan_form import ONE_IMAGE, ScanForm
from fedgraft.client.readers.sequences import find_sequences, list_images, stack_sequences
from fedgraft.client.readers.source import Prepare, content_digest, digest
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch, concatenate
from fedgraft.common.inputs.volume import Volume

# files of a record by its first: its sequences, and then what else its row names
Parts = Mapping[str, Sequence[str]]
WHOLE: Parts = MappingProxyType({})
# (a file or a folder of slices, how many images it has) → the scan
ReadOne = Callable[[Path, int], Scan]


def read_volumes(
    files: Sequence[str | Path],
    prepare: Prepare | None = None,
    bits: int | None = None,
    form: ScanForm = ONE_IMAGE,
    parts: Parts = WHOLE,
) -> list[Volume] | Batch:
    """Return volumes, or what `prepare` makes of them; one after the other, as they are large.

    Args:
        bits: of images; volumes have none.
        form: which images a volume is made of.
        parts: files of a record's sequences, by its first; others are looked for in its folder.

    Raises:
        UserError: one cannot be used; names it.
    """
    if prepare is None:
        return [_read_or_say(str(file), form, parts) for file in files]
    return concatenate([prepare([_read_or_say(str(file), form, parts)]) for file in files])


def look_at_volumes(
    where: str,
    entries: Sequence[ImageEntry],
    cache: Path | None,
    form: ScanForm = ONE_IMAGE,
    parts: Parts = WHOLE,
) -> list[Look]:
    """Return what looking at each volume gives. Each is read: nothing is remembered yet."""
    return [_look_at(entry, form, parts) for entry in entries]


def _look_at(entry: ImageEntry, form: ScanForm, parts: Parts) -> Look:
    # a sequence's own digest is of what was read for the record
    read_one = cache(_read_one)
    try:
        scan = _read(entry.file, form, parts, read_one)
    except PermissionError:
        return Look(b"", FORBIDDEN)
    except BrokenVolume as error:
        return Look(b"", str(error))
    except (OSError, ValueError):
        return Look(b"", MISSING)
    content = _hash(scan)
    own = _hash_parts(entry.file, form, parts, read_one)
    return Look(
        digest=digest(content, entry.label),
        problem="",
        patient=scan.patient,
        content=content_digest(content),
        parts=tuple(digest(part, entry.label) for part in own),
    )


def _hash(scan: Scan) -> bytes:
    """Return SHA-256 of a scan: the same voxels are the same record, however they were packed."""
    voxels = scan.voxels
    shape = voxels.shape[1:] if len(voxels) == 1 else voxels.shape
    hashed = hashlib.sha256(repr((shape, scan.spacing)).encode())
    hashed.update(np.ascontiguousarray(voxels).data)
    return hashed.digest()


def _hash_parts(path: str, form: ScanForm, parts: Parts, read_one: ReadOne) -> list[bytes]:
    """Return the SHA-256 of each image that lies in a record, whether a plan picks it or not: plans
    that pick others, or in another order, or each as a record of its own, share what was spent.
    """
    if not form.sequences:
        return []
    files = map(Path, parts.get(path, ())) if path in parts else list_images(Path(path))
    hashes: list[bytes] = []
    for file in files:
        try:
            hashes.append(_hash(read_one(file, 1)))
        # what is no image here is none in another plan
        except (BrokenVolume, OSError, ValueError):
            continue
    return hashes


def _read_or_say(path: str, form: ScanForm, parts: Parts) -> Volume:
    return as_volume(read_scan_at(path, form, parts))


def as_volume(scan: Scan) -> Volume:
    """Return a scan as a raw record, without where it lies."""
    return Volume(torch.from_numpy(np.ascontiguousarray(scan.voxels)), scan.spacing)


def read_scan_at(path: str, form: ScanForm, parts: Parts) -> Scan:
    """Return a record's images with where they lie. Raise `UserError`, which names the path."""
    try:
        return _read(path, form, parts, _read_one)
    except BrokenVolume as error:
        remedy = "mend it, or take it out"
        raise UserError(
            f"a volume that cannot be used: {error}", where=str(path), remedy=remedy
        ) from error
    except (OSError, ValueError) as error:
        remedy = "give a .nii, a .nii.gz or a folder of DICOM slices that the node may read"
        what = f"cannot be read ({type(error).__name__})"
        raise UserError(what, where=str(path), remedy=remedy) from error


def _read(path: str, form: ScanForm, parts: Parts, read_one: ReadOne) -> Scan:
    """Return a record's images, each whole, finite and not blank. Raise `BrokenVolume` or
    `OSError`.
    """
    if not form.sequences:
        return read_one(Path(path), form.channels)
    files = [Path(part) for part in parts.get(path, ())][: len(form.sequences)]
    if not files:
        files = find_sequences(Path(path), form.sequences)
    scans: dict[str, Scan] = {}
    for name, file in zip(form.sequences, files, strict=True):
        scans[name] = read_one(file, 1)
    return stack_sequences(scans)


def _read_one(path: Path, channels: int) -> Scan:
    if path.is_dir():
        scan = read_series(path)
    elif is_nifti(path.name):
        scan = read_nifti(path, channels)
    elif path.exists():
        raise BrokenVolume("neither .nii, nor .nii.gz, nor a folder of DICOM slices")
    else:
        raise FileNotFoundError(path)
    if len(scan.voxels) != channels:
        raise BrokenVolume(f"another number of images than {channels}, which the plan wants")
    low = scan.voxels.min((1, 2, 3))
    high = scan.voxels.max((1, 2, 3))
    # NaN is no number that another equals
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise BrokenVolume("values that are not finite (NaN or infinity)")
    if (low == high).any():
        raise BrokenVolume("blank: every voxel has one value")
    return scan


def volume_files(form: ScanForm, parts: Parts = WHOLE) -> FileKind:
    """Return volumes in the form that a plan wants."""
    look = partial(look_at_volumes, form=form, parts=parts)
    read = partial(read_volumes, form=form, parts=parts)
    return FileKind(look, read, singular="volume", plural="volumes")
