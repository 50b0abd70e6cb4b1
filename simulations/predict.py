"""`fedgraft predict`: the shared model on an image, a folder, an .npz or a .csv; writes a CSV of
probabilities.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.readers.archive import load_archive
from fedgraft.client.readers.folder import DICOM_SUFFIXES
from fedgraft.client.readers.image_arrays import as_images
from fedgraft.client.readers.image_file import SUFFIXES, read_images
from fedgraft.client.readers.table_file import read_features
from fedgraft.common.errors import UserError
from fedgraft.common.files.whole_files import replacing
from fedgraft.common.model.shared_model import SharedModel, load_shared_model

BATCH = 256


def predict(run: Path, data: Path, out: Path, backbone: Path | None = None) -> int:
    """Predict every input of `data` and write one CSV line each: input, class, and a probability
    for each class.

    Returns:
        How many lines were written (without the header).

    Raises:
        UserError: no such run or input, an input of the wrong kind, or a file that cannot be
            written.
    """
    shared = load_shared_model(run, backbone)
    torch.set_num_threads(shared.plan.train.threads)
    written = 0
    try:
        with replacing(out) as part, part.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["input", "class", *(f"p_{name}" for name in shared.classes)])
            for names, inputs in _batches(shared, data):
                for name, row in zip(names, shared.probabilities(inputs), strict=True):
                    best = shared.classes[int(row.argmax())]
                    writer.writerow([name, best, *(f"{value:.6f}" for value in row.tolist())])
                    written += 1
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})",
            where=str(out),
            remedy="name another file: --out FILE.csv",
        ) from error
    return written


def _batches(shared: SharedModel, data: Path) -> Iterator[tuple[list[str], Tensor]]:
    """Names and raw inputs of `data`, some at a time. Images of a folder may differ in size:
    prepared one by one.
    """
    tables = shared.plan.task.kind == "tabular-classification"
    if not data.exists():
        raise UserError(
            "no such file or folder",
            where=str(data),
            remedy="give an image, a folder, an .npz or a .csv",
        )
    if tables != (data.suffix.lower() == ".csv"):
        wanted = (
            "a .csv with the plan's columns"
            if tables
            else "an image, a folder of images or an .npz"
        )
        raise UserError(f"this model takes {wanted}", where=str(data), remedy=f"give {wanted}")
    if tables:
        values = torch.from_numpy(
            read_features(data, shared.plan.task.columns, shared.plan.task.encoding)
        )
        yield from _slices([f"row {index + 1}" for index in range(len(values))], values)
    elif data.suffix.lower() == ".npz":
        yield from _npz(data)
    else:
        known = (*SUFFIXES, *DICOM_SUFFIXES)
        files = (
            [data]
            if data.is_file()
            else sorted(f for f in data.rglob("*") if f.suffix.lower() in known)
        )
        if not files:
            raise UserError(
                "no images in this folder", where=str(data), remedy=f"known: {', '.join(known)}"
            )
        for file in files:
            name = file.name if data.is_file() else str(file.relative_to(data))
            yield [name], read_images([file])


def _npz(data: Path) -> Iterator[tuple[list[str], Tensor]]:
    arrays = {key: array for key, array in load_archive(data)[0].items() if key.endswith("images")}
    if not arrays:
        raise UserError(
            "no array of images", where=str(data), remedy="name it `images`, or as MedMNIST does"
        )
    for key, array in arrays.items():
        images = torch.from_numpy(np.ascontiguousarray(as_images(array, f"{data}: {key}")))
        yield from _slices([f"{key}[{index}]" for index in range(len(images))], images)


def _slices(names: list[str], inputs: Tensor) -> Iterator[tuple[list[str], Tensor]]:
    for start in range(0, len(names), BATCH):
        yield names[start : start + BATCH], inputs[start : start + BATCH]
