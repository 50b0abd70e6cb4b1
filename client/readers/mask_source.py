"""Masks beside the records of a source: each is looked at once, and read when it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.readers.image_file import read_images
from fedgraft.client.readers.mask_file import read_image_mask, read_volume_mask
from fedgraft.client.readers.pixel_form import PixelForm
from fedgraft.client.readers.scan_form import ScanForm
from fedgraft.client.readers.sequences import is_on_grid
from fedgraft.client.readers.source import Masks, Source
from fedgraft.client.readers.table_cells import MOST_TOLD, raise_mistakes
from fedgraft.client.readers.volume_file import WHOLE, Parts, as_volume, read_scan_at
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.volume import Volume

Mask = Tensor | Volume


@dataclass(frozen=True)
class MaskKind:
    """How masks of one raw material are read.

    Attributes:
        check: (the record's file, its mask's) → the mask, held against the record; raises
            `UserError` where it is none, or does not fit.
        read: the mask's file → the mask, without the record.
    """

    check: Callable[[Path, Path], Mask]
    read: Callable[[Path], Mask]


def add_masks(source: Source, files: Sequence[str], kind: MaskKind) -> Source:
    """Return a source of files with the mask of each record.

    A record's digest is of its mask, too, as a label's would be; its identity is not.

    Args:
        files: the mask of each record.

    Raises:
        UserError: a mask that is missing, damaged, or does not fit its image; several at once.
    """
    digests: list[bytes] = []
    values: list[tuple[int, ...]] = []
    mistakes: list[UserError] = []
    for record, file, seen in zip(source.files, files, source.digests, strict=True):
        try:
            mask = kind.check(Path(record), Path(file))
        except UserError as mistake:
            mistakes.append(mistake)
            if len(mistakes) >= MOST_TOLD:
                break
            continue
        numbers = _numbers_of(mask)
        values.append(tuple(np.unique(numbers).tolist()))
        digests.append(hashlib.sha256(seen + _hash(numbers)).digest())
    raise_mistakes(mistakes)

    def read(row: int) -> Mask:
        return kind.read(Path(files[row]))

    return replace(source, digests=digests, masks=Masks(values, read), _derived={})


def add_mask_arrays(source: Source, masks: np.ndarray) -> Source:
    """Return a source of arrays with the masks `(n, H, W)`, uint8, of its records."""
    masks.setflags(write=False)
    digests: list[bytes] = []
    values: list[tuple[int, ...]] = []
    for mask, seen in zip(masks, source.digests, strict=True):
        values.append(tuple(np.unique(mask).tolist()))
        digests.append(hashlib.sha256(seen + _hash(mask)).digest())

    def read(row: int) -> Mask:
        return torch.from_numpy(masks[row].copy())

    return replace(source, digests=digests, masks=Masks(values, read), _derived={})


def _numbers_of(mask: Mask) -> np.ndarray:
    return (mask.values if isinstance(mask, Volume) else mask).numpy()


def _hash(numbers: np.ndarray) -> bytes:
    hashed = hashlib.sha256(repr(numbers.shape).encode())
    hashed.update(np.ascontiguousarray(numbers).data)
    return hashed.digest()


# ── images ────────────────────────────────────────────────────────────────────────────────────────
def image_masks(form: PixelForm) -> MaskKind:
    """Return how masks of image files are read, in the form that a plan wants of the images."""

    def check(image: Path, file: Path) -> Mask:
        mask = read_image_mask(file)
        check_sides(tuple(mask.shape), measure_image(image, form), str(file), image.name)
        return mask

    return MaskKind(check, read_image_mask)


def check_sides(mask: tuple[int, ...], record: tuple[int, ...], where: str, name: str) -> None:
    """Raise `UserError` where a mask has other sides than its record."""
    if mask == record:
        return
    sides = "×".join(map(str, mask))
    wanted = "×".join(map(str, record))
    what = f"a mask of {sides}, and {name} is {wanted} (rows × columns)"
    remedy = "give the mask in the image's own size; both are resized together"
    raise UserError(what, where=where, remedy=remedy)


def measure_image(path: Path, form: PixelForm) -> tuple[int, ...]:
    """Return rows and columns of an image file, turned upright. Raise `UserError`."""
    image = read_images([path], form=form)
    assert isinstance(image, Tensor)
    return tuple(image.shape[-2:])


# ── volumes ───────────────────────────────────────────────────────────────────────────────────────
def volume_masks(form: ScanForm, parts: Parts = WHOLE) -> MaskKind:
    """Return how masks of volumes are read; arguments as of `volume_file.volume_files`."""

    def check(volume: Path, file: Path) -> Mask:
        mask = read_volume_mask(file)
        scan = read_scan_at(str(volume), form, parts)
        check_sides(mask.voxels.shape[1:], scan.voxels.shape[1:], str(file), volume.name)
        if not is_on_grid(mask, scan):
            what = f"a mask that does not lie on the grid of {volume.name} (spacing and place)"
            remedy = "resample it there, by the nearest voxel"
            raise UserError(what, where=str(file), remedy=remedy)
        return as_volume(mask)

    return MaskKind(check, lambda file: as_volume(read_volume_mask(file)))
