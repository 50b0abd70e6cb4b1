"""`fedgraft predict` where answers are masks: a file for each image or volume, and a table of the
shares of the classes.
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from torch import Tensor

from fedgraft.client.readers.nifti import SUFFIXES, import_nibabel
from fedgraft.client.readers.scan_form import ScanForm
from fedgraft.client.readers.volume_file import WHOLE, as_volume, read_scan_at
from fedgraft.client.readers.volume_folder import list_volumes
from fedgraft.common.errors import UserError
from fedgraft.common.files.foreign_text import as_cell
from fedgraft.common.files.whole_files import write_whole
from fedgraft.common.inputs import input_line
from fedgraft.common.inputs.material import Raw
from fedgraft.common.model.shared_model import SharedModel
from fedgraft.common.model.whole_masks import outline, share_of_classes

TABLE = "shares.csv"
# name, mask uint8 (H, W) or (D, H, W), and where a volume's voxels lie
Outlined = tuple[str, Tensor, np.ndarray | None]


def write_masks(
    shared: SharedModel, data: Path, out: Path, batches: Iterable[tuple[list[str], Raw]]
) -> int:
    """Write the mask of every input and a table of the shares of the classes; of a CSV the table
    alone.

    A mask of an image is a PNG with the values that the plan's data have, of a volume a NIfTI file
    on the patient's axes.

    Args:
        out: a folder, or a file that ends in .csv.
        batches: names and raw images, where inputs are images.

    Returns:
        How many masks there are.

    Raises:
        UserError: an input that cannot be read, or a file that cannot be written.
    """
    is_table = out.suffix.lower() == ".csv"
    task = shared.plan.task
    values = np.array(task.labels or range(len(task.classes)), np.uint8)
    lines = [["input", *map(as_cell, shared.columns)]]
    for name, mask, grid in outline_inputs(shared, data, batches):
        shares = share_of_classes(mask, shared.classes)
        lines.append([as_cell(name), *(f"{share:.6f}" for share in shares)])
        if not is_table:
            _write_mask(out, name, values[mask.numpy()], grid)
    table = io.StringIO()
    csv.writer(table).writerows(lines)
    _write(out if is_table else out / TABLE, table.getvalue().encode())
    return len(lines) - 1


def outline_inputs(
    shared: SharedModel, data: Path, batches: Iterable[tuple[list[str], Raw]]
) -> Iterator[Outlined]:
    """Yield the mask of each input; arguments as of `write_masks`."""
    if input_line(shared.plan.task.material).has_volumes:
        yield from _outline_volumes(shared, data)
        return
    for names, images in batches:
        for name, image in zip(names, images, strict=True):
            yield name, outline(shared, image), None


def _outline_volumes(shared: SharedModel, data: Path) -> Iterator[Outlined]:
    form = ScanForm.of(shared.plan.backbone)
    files = [data]
    if data.is_dir():
        files, _ = list_volumes(data, form)
    if not files:
        remedy = "give a .nii or .nii.gz, or a folder of them or of DICOM slices"
        raise UserError("no volumes in this folder", where=str(data), remedy=remedy)
    for file in files:
        name = data.name if file == data else str(file.relative_to(data))
        scan = read_scan_at(str(file), form, WHOLE)
        yield name, outline(shared, as_volume(scan)), scan.grid


# ── files ─────────────────────────────────────────────────────────────────────────────────────────
def _write_mask(out: Path, name: str, mask: np.ndarray, grid: np.ndarray | None) -> None:
    stem = PurePath(name).as_posix()
    for ending in SUFFIXES[::-1]:
        stem = stem.removesuffix(ending)
    if grid is None:
        stem = str(PurePath(stem).with_suffix("")) if PurePath(stem).suffix else stem
        _write(out / f"{stem}.png", encode_png(mask))
    else:
        _write(out / f"{stem}.nii.gz", encode_nifti(mask, grid))


def encode_png(mask: np.ndarray) -> bytes:
    """Return a mask `(H, W)` as a grey PNG: its numbers are kept."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(mask).save(content, "PNG")
    return content.getvalue()


def encode_nifti(mask: np.ndarray, grid: np.ndarray) -> bytes:
    """Return a mask `(D, H, W)` as a packed NIfTI file: axes right, front, head.

    Args:
        grid: place of a voxel (D, H, W, 1) → mm towards the patient's right, front and head.
    """
    nibabel = import_nibabel()
    image: Any = nibabel.Nifti1Image(mask.transpose(2, 1, 0), grid[:, [2, 1, 0, 3]])
    with tempfile.TemporaryDirectory(prefix="fedgraft-mask-") as folder:
        file = Path(folder) / "mask.nii.gz"
        nibabel.save(image, file)
        return file.read_bytes()


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content, durable=False)
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        remedy = "name another folder: --out FOLDER"
        raise UserError(what, where=str(path), remedy=remedy) from error
