"""`fedgraft predict`: the shared model on an image, a volume, a signal, a folder of them, an .npz,
or a table of rows, texts, signals or images with columns; writes a CSV of probabilities.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.readers.archive import check_no_windows, load_archive
from fedgraft.client.readers.folder_files import DICOM_SUFFIXES
from fedgraft.client.readers.image_array_file import SUFFIX
from fedgraft.client.readers.image_arrays import as_images
from fedgraft.client.readers.image_file import SUFFIXES, read_images
from fedgraft.client.readers.image_table import SUFFIXES as LISTS
from fedgraft.client.readers.image_table import pair, read_unlabelled
from fedgraft.client.readers.nifti import is_nifti
from fedgraft.client.readers.pixel_form import PixelForm
from fedgraft.client.readers.reader import TableColumns
from fedgraft.client.readers.recording import BrokenSignal, check_recording
from fedgraft.client.readers.scan_form import ScanForm
from fedgraft.client.readers.signal_archive import list_recordings, load_signals
from fedgraft.client.readers.signal_file import is_signal, read_signals
from fedgraft.client.readers.signal_folder import list_signals
from fedgraft.client.readers.signal_table import RECORD, read_tabled
from fedgraft.client.readers.signal_table import SUFFIXES as SIGNAL_TABLES
from fedgraft.client.readers.table_cells import read_cells
from fedgraft.client.readers.table_file import read_features
from fedgraft.client.readers.text_table import TABLE_SUFFIXES, read_texts
from fedgraft.client.readers.volume_file import read_volumes
from fedgraft.client.readers.volume_folder import list_volumes
from fedgraft.common.errors import UserError
from fedgraft.common.files.foreign_text import as_cell
from fedgraft.common.files.whole_files import replacing
from fedgraft.common.inputs import input_line
from fedgraft.common.inputs.material import Raw
from fedgraft.common.model.assembly import bring_to
from fedgraft.common.model.devices import find_device
from fedgraft.common.model.shared_model import SharedModel, Told, load_shared_model
from fedgraft.common.tasks import task_line
from fedgraft.simulations.predict_boxes import write_boxes
from fedgraft.simulations.predict_masks import outline_inputs, write_masks

BATCH = 256
# names of inputs, and the raw inputs
Batch = tuple[list[str], Raw]

TABLES = "a .csv, .parquet or .jsonl with the plan's columns"
LISTED = "a .csv or .parquet with a column `path` of images, and the plan's columns"
TEXTS = "a .csv, .parquet or .jsonl with the plan's column of texts"
VOLUMES = "a .nii or .nii.gz, or a folder of them or of DICOM slices"
SIGNALS = "a .wav or .hea, a folder of them, a table of signals (.csv, .parquet) or an .npz"
IMAGES = "an image, a folder of images or an .npz"


def predict(
    run: Path,
    data: Path,
    out: Path,
    backbone: Path | None = None,
    *,
    sliding: bool = False,
    tokens: int | None = None,
    device: str = "cpu",
) -> int:
    """Predict every input of `data` and write one CSV line each: input, the answer, what is told of
    it (a probability for each class, or a number), and the predictive standard deviation of the
    answer's score, where the plan has `train.closed_form.variance`. Masks and boxes are written as
    `predict_masks.py` and `predict_boxes.py` say.

    Args:
        backbone: the backbone's file, if it does not lie in the run's folder.
        sliding: look at volumes in overlapping crops and take the mean of their probabilities;
            nothing is said of how far scores may be off.
        tokens: that are written at most, where answers are texts.
        device: where the model is computed: cpu, cuda, cuda:N, mps or auto.

    Returns:
        How many lines were written (without the header).

    Raises:
        UserError: no such run or input, an input of the wrong kind, or a file that cannot be
            written.
    """
    shared = load_shared_model(run, backbone)
    torch.set_num_threads(shared.plan.train.threads)
    bring_to(shared.model, find_device(device), shared.plan)
    check_tokens(shared, tokens)
    line = task_line(shared.plan.task.question)
    if line.has_masks:
        return write_masks(shared, data, out, read_batches(shared, data))
    if line.has_boxes:
        return write_boxes(shared, out, read_batches(shared, data))
    written = 0
    try:
        with replacing(out) as part, part.open("w", newline="") as file:
            writer = csv.writer(file)
            head = ["input"]
            if shared.has_answers:
                head.append(shared.question.answered)
            head += map(as_cell, shared.columns)
            if shared.variance is not None and not sliding:
                head.append("deviation")
            writer.writerow(head)
            for names, inputs in read_batches(shared, data):
                told = tell_batch(shared, inputs, sliding=sliding, tokens=tokens)
                deviations = None if sliding else shared.deviations(inputs)
                lines = _list_lines(shared, names, told, deviations)
                writer.writerows(lines)
                written += len(lines)
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        remedy = "name another file: --out FILE.csv"
        raise UserError(what, where=str(out), remedy=remedy) from error
    return written


def outline_path(shared: SharedModel, data: Path) -> Iterator[Tensor]:
    """Yield the mask of each input of `data`. Raise `UserError` as `predict`."""
    for _, mask, _ in outline_inputs(shared, data, read_batches(shared, data)):
        yield mask


def check_tokens(shared: SharedModel, tokens: int | None) -> None:
    """Raise `UserError` for a number of tokens where answers are no texts."""
    if tokens is not None and shared.question.write is None:
        what = f"{tokens}, and the answers of {shared.plan.task.kind} are not written"
        raise UserError(what, where="tokens", remedy="leave it out")


def read_inputs(
    shared: SharedModel, data: Path, *, sliding: bool = False, tokens: int | None = None
) -> tuple[list[str], Told]:
    """Return the names of all inputs of `data`, and what the model tells of them.

    Raises:
        UserError: as `predict`.
    """
    names: list[str] = []
    values = [torch.empty(0, len(shared.columns))]
    answers: list[str] = []
    for some, inputs in read_batches(shared, data):
        names += some
        told = tell_batch(shared, inputs, sliding=sliding, tokens=tokens)
        values.append(told.values)
        answers += told.answers or []
    return names, Told(torch.cat(values), answers if shared.has_answers else None)


def tell_batch(
    shared: SharedModel, inputs: Raw, *, sliding: bool, tokens: int | None = None
) -> Told:
    """Return what a model tells of some inputs."""
    if not sliding:
        return shared.tell(inputs, tokens)
    values = shared.predict_sliding(inputs)
    return Told(values, shared.answers(values))


def _list_lines(
    shared: SharedModel, names: Sequence[str], told: Told, deviations: Tensor | None
) -> list[list[str]]:
    """Return a line for each input: its name, the answer, what is told of it, and how far the score
    of the answer may be off, where the model knows.
    """
    lines = []
    answers = told.answers
    for at, values in enumerate(told.values.tolist()):
        line = [as_cell(names[at])]
        column = 0
        if answers is not None:
            line.append(as_cell(answers[at]))
            if answers[at] in shared.classes:
                column = shared.classes.index(answers[at])
        line += [f"{value:.6f}" for value in values]
        if deviations is not None:
            line.append(f"{float(deviations[at, column]):.6f}")
        lines.append(line)
    return lines


def read_batches(shared: SharedModel, data: Path) -> Iterator[Batch]:
    """Yield names and raw inputs of `data`, some at a time."""
    line = input_line(shared.plan.task.material)
    if not data.exists():
        remedy = "give an image, a folder, an .npz or a table"
        raise UserError("no such file or folder", where=str(data), remedy=remedy)
    name = data.name.lower()
    if line.has_text:
        _check_kind(data, TEXTS, is_right=name.endswith(TABLE_SUFFIXES))
        yield from _read_texts(shared, data)
        return
    is_table = name.endswith(TABLE_SUFFIXES)
    if line.has_columns and line.has_pixels:
        _check_kind(data, LISTED, is_right=name.endswith(LISTS))
        yield from _read_list(shared, data)
        return
    if line.has_columns:
        _check_kind(data, TABLES, is_right=is_table)
        yield from _read_table(shared, data)
        return
    if line.has_volumes:
        _check_kind(data, VOLUMES, is_right=data.is_dir() or is_nifti(name))
        yield from _read_volumes(data, ScanForm.of(shared.plan.backbone))
        return
    if line.has_signals:
        is_known = is_signal(name) or name.endswith((*SIGNAL_TABLES, ".npz"))
        _check_kind(data, SIGNALS, is_right=data.is_dir() or is_known)
        yield from _read_signals(shared, data)
        return
    _check_kind(data, IMAGES, is_right=not is_table)
    form = PixelForm.of(shared.plan.backbone)
    if data.suffix.lower() == ".npz":
        yield from _read_archive(data, form)
    else:
        yield from _read_images(data, form)


def _check_kind(data: Path, needed: str, *, is_right: bool) -> None:
    """Raise `UserError` where a file is of another kind than the model takes."""
    if not is_right:
        raise UserError(f"this model takes {needed}", where=str(data), remedy=f"give {needed}")


def _read_texts(shared: SharedModel, data: Path) -> Iterator[Batch]:
    texts = read_texts(data, shared.plan.task.prompt)
    names = [f"row {index + 1}" for index in range(len(texts))]
    yield from _cut(names, texts)


def _read_table(shared: SharedModel, data: Path) -> Iterator[Batch]:
    task = shared.plan.task
    values = torch.from_numpy(read_features(data, task.columns, task.encoding))
    names = [f"row {index + 1}" for index in range(len(values))]
    yield from _cut(names, values)


def _read_list(shared: SharedModel, data: Path) -> Iterator[Batch]:
    """Yield images and their rows one by one."""
    task = shared.plan.task
    columns = TableColumns.of(task.columns, task.encoding, task.answers)
    form = PixelForm.of(shared.plan.backbone)
    for name, file, row in read_unlabelled(data, columns):
        yield [name], [pair(file, row, form)]


def _read_archive(data: Path, form: PixelForm) -> Iterator[Batch]:
    check_no_windows(data, form)
    archive, *_ = load_archive(data)
    keys = [key for key in archive if key.endswith("images")]
    if not keys:
        remedy = "name it `images`, or as MedMNIST does"
        raise UserError("no array of images", where=str(data), remedy=remedy)
    for key in keys:
        array = as_images(archive[key], f"{data}: {key}", form)
        images = torch.from_numpy(np.ascontiguousarray(array))
        names = [f"{key}[{index}]" for index in range(len(images))]
        yield from _cut(names, images)


def _read_images(data: Path, form: PixelForm) -> Iterator[Batch]:
    """Yield images one by one: those of a folder may differ in size."""
    if data.is_file():
        yield [data.name], _decode(data, form)
        return
    known = (*SUFFIXES, *DICOM_SUFFIXES)
    files = sorted(file for file in data.rglob("*") if file.suffix.lower() in known)
    # beside images an array is what was made of one
    files = files or sorted(data.rglob(f"*{SUFFIX}"))
    if not files:
        remedy = f"known: {', '.join((*known, SUFFIX))}"
        raise UserError("no images in this folder", where=str(data), remedy=remedy)
    for file in files:
        yield [str(file.relative_to(data))], _decode(file, form)


def _read_volumes(data: Path, form: ScanForm) -> Iterator[Batch]:
    """Yield volumes one by one."""
    files = [data]
    if data.is_dir():
        files, _ = list_volumes(data, form)
    if not files:
        raise UserError("no volumes in this folder", where=str(data), remedy=f"give {VOLUMES}")
    for file in files:
        # a folder of slices is its own volume
        name = data.name if file == data else str(file.relative_to(data))
        volumes = read_volumes([file], form=form)
        assert isinstance(volumes, list)
        yield [name], volumes


def _read_signals(shared: SharedModel, data: Path) -> Iterator[Batch]:
    """Yield signals one by one: they may be long."""
    section = shared.plan.backbone.signal
    assert section is not None
    name = data.name.lower()
    if not (data.is_dir() or is_signal(name)):
        yield from _read_stored_signals(data, section.channels)
        return
    files = [data]
    if data.is_dir():
        files, _ = list_signals(data)
    if not files:
        raise UserError("no signals in this folder", where=str(data), remedy=f"give {SIGNALS}")
    for file in files:
        signals = read_signals(section.channels, [file])
        assert isinstance(signals, list)
        yield [data.name if file == data else str(file.relative_to(data))], signals


def _read_stored_signals(data: Path, channels: tuple[str, ...]) -> Iterator[Batch]:
    """Yield the signals of a table or an archive. Raise `UserError` for one that cannot be used."""
    if data.suffix.lower() == ".npz":
        recordings = list_recordings(load_signals(data), channels, data)
        names = [f"series[{index}]" for index in range(len(recordings))]
    else:
        cells = read_cells(data)
        records = read_tabled(cells, channels)
        recordings = [record.recording for record in records]
        names = [f"row {record.rows[0] + 1}" for record in records]
        if RECORD in cells.header:
            column = cells.column(RECORD)
            names = [column[record.rows[0]] for record in records]
    for name, recording in zip(names, recordings, strict=True):
        try:
            if isinstance(recording, BrokenSignal):
                raise recording
            yield [name], [check_recording(recording).signal()]
        except BrokenSignal as error:
            what = f"a signal that cannot be used: {error}"
            remedy = "mend it, or take it out"
            raise UserError(what, where=f"{data}: {name}", remedy=remedy) from error


def _cut(names: list[str], inputs: Raw) -> Iterator[Batch]:
    for start in range(0, len(names), BATCH):
        end = start + BATCH
        yield names[start:end], inputs[start:end]


def _decode(file: Path, form: PixelForm) -> Tensor:
    images = read_images([file], form=form)
    if not isinstance(images, Tensor):
        raise TypeError("images that were not prepared are a tensor")
    return images
