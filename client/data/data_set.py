"""One hospital's data set under one plan: its records, their classes, and which are for training
and testing.

A file is decoded once per process and shared, read-only: a thousand simulated nodes hold one array.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.choose_splits import (
    LabelledRows,
    SplitRule,
    choose_splits,
    list_own_rows,
)
from fedgraft.client.data.find_reader import find_reader
from fedgraft.client.data.left_out import check_left_out
from fedgraft.client.data.owners import find_owners
from fedgraft.client.data.shared_images import check_shared
from fedgraft.client.readers.pixel_form import AS_USUAL, PixelForm
from fedgraft.client.readers.reader import (
    USUAL_NAMES,
    ManifestColumns,
    ReadRequest,
    TableColumns,
)
from fedgraft.client.readers.reader_table import PREFIX, READERS
from fedgraft.client.readers.scan_form import ONE_IMAGE, ScanForm
from fedgraft.client.readers.source import Source
from fedgraft.client.readers.source_cache import SourceCache
from fedgraft.client.readers.table_cells import raise_mistakes
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.material import Preparation
from fedgraft.common.plan.reading_section import UNDECIDED, ReadingSection
from fedgraft.common.plan.signal_section import SignalSection
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks import TASKS, task_line
from fedgraft.common.tasks.labels import list_labels

MAX_UNREADABLE = 0.01
SOURCES = SourceCache()


@dataclass(frozen=True)
class DataSource:
    """Where a hospital's records are, and how they are read.

        DataSource("/data/xrays", test_fraction=0.3, patient="mrn")

    Attributes:
        path: file, folder, or `sklearn:<name>`.
        format: one of `READERS`; None: told from the path and the kind of task.
        rows: .npz with the row numbers of train, val and test; None: the file's own splits, or a
            share `test_fraction` of each class by content.
        validation_fraction: share of each class of the training rows that is kept to choose by,
            where the data has no validation rows.
        patient: column or array that says whose each record is; None: "patient", if there is one.
        manifest: what a manifest's columns of paths, labels and splits are called.
        max_unreadable: share of the files that may be unusable; they are left out and counted.
        cache: folder to remember there which image files were looked at already.
        reading: what a person has decided about data that look like something else than they are.
        signal: the plan's `backbone.signal`; series are read by the names of its channels.
        form: what the plan says of the channels and windows of images.
        scan: which images its volumes are made of.
    """

    path: str | Path
    format: str | None = None
    rows: Path | None = None
    test_fraction: float = 0.2
    patient: str | None = None
    manifest: ManifestColumns = USUAL_NAMES
    max_unreadable: float = MAX_UNREADABLE
    cache: Path | None = None
    validation_fraction: float = 0.0
    reading: ReadingSection = UNDECIDED
    signal: SignalSection | None = None
    form: PixelForm = AS_USUAL
    scan: ScanForm = ONE_IMAGE


@dataclass(frozen=True, eq=False)
class Records:
    """A hospital's records, by row number of its file.

        records = open_records(DataSource("/data/xrays.npz"), plan.task)
        batch = records.prepare(records.splits["train"][:32], preparation)

    Attributes:
        labels: the target of each row, `(n, …)`: int64, or float32 for numbers.
        strata: by which rows are dealt, int64 `(n,)`: their classes, or what stands for them; −1
            for rows that are not part of the task.
        splits: row numbers of "train", "val" and "test", int64, rising; together the rows of the
            task.
        fingerprint: "sha256:…" over the contents of the rows in the splits, whatever their order.
        owners: whose each row is; None where the data does not say.
        rows_file: .npz that says which rows of the file are this node's; None: all are.
        task: the plan's, by which targets are aligned with prepared records, such as masks; None:
            `labels` are all the targets there are.
    """

    labels: np.ndarray
    strata: np.ndarray
    splits: Mapping[str, np.ndarray]
    fingerprint: str
    source: Source
    owners: list[str] | None = None
    rows_file: Path | None = None
    task: TaskSection | None = None

    @property
    def rows(self) -> np.ndarray:
        """Row numbers of all records of this node, int64, whatever the task asks for."""
        return list_own_rows(self.rows_file, len(self.labels))

    @property
    def skipped(self) -> int:
        """How many records could not be read and are left out."""
        return self.source.skipped

    def read(self, rows: np.ndarray) -> Any:
        """Return the values of these rows as they are.

        Images: uint8 (or uint16) `(n, C, H, W)`, C = 1 where grey. Tables: float32 `(n, F)`, NaN
        where missing. Texts: a list of str. Volumes and signals: a list of them.
        """
        return self.source.read(np.asarray(rows, np.int64), None)

    def prepare(self, rows: np.ndarray, preparation: Preparation) -> Batch:
        """Return these rows as a backbone takes them; image by image where they are files."""
        return self.source.read(np.asarray(rows, np.int64), preparation)

    def targets(self, rows: np.ndarray, preparation: Preparation) -> Tensor:
        """Return the targets of these rows, `(n, …)`; where they lie in the records' own grid,
        prepared as these are.
        """
        if self.task is not None:
            aligned = TASKS[self.task.question].aligned
            if aligned is not None:
                return aligned(self.source, np.asarray(rows, np.int64), preparation, self.task)
        # picking rows copies
        return torch.from_numpy(self.labels[rows])

    def column(self, name: str) -> list[str]:
        """Return each row's text in one column of a table, or array of an archive.

        Raises `UserError` where there is none.
        """
        if self.source.column is not None:
            return self.source.column(name)
        remedy = (
            "columns are in tables and manifests, and arrays with a value for each image in"
            " archives (.npz)"
        )
        raise UserError(f"no column {name!r}", where=self.source.where, remedy=remedy)


def open_records(data: DataSource, task: TaskSection, seed: int = 0) -> Records:
    """Open a hospital's data for a plan's task, and check it.

    Args:
        seed: of the shares of each class that are kept for tests and to choose by.

    Raises:
        UserError: the data is missing, corrupt, or not what the plan says; names file, line and
            column.
    """
    source = open_source(data, task)
    _check_readable(source, data.max_unreadable)
    targets, strata = source.derived(("targets", task), lambda: _targets(source, task))
    owners = _check_meaning(source, data, task, strata)

    rows = LabelledRows(
        source.where, strata, source.digests, source.splits, owners, source.contents
    )
    rule = SplitRule(data.rows, data.test_fraction, seed, data.validation_fraction)
    splits = choose_splits(rows, rule)
    if not len(splits["train"]):
        raise UserError(
            "no training examples of the plan's task",
            where=str(data.rows or source.where),
            remedy=_compare_labels(source, task),
        )
    fingerprint = _fingerprint(source, splits)
    return Records(targets, strata, splits, fingerprint, source, owners, data.rows, task)


def open_source(data: DataSource, task: TaskSection) -> Source:
    """Return every record of a file or folder, whatever its label is. Raise `UserError` for what
    cannot be read, or is of another kind than the task's.
    """
    name = str(data.path)
    line = task_line(task.question)
    masks = line.has_masks
    reader = find_reader(name, data.format, task.material, masks=masks, boxes=line.has_boxes)
    content = reader.gives(name)
    if content.material != task.material:
        what = f"{content.words}, but the plan's task is {task.kind}"
        formats = [each.name for each in READERS.values() if each.matches(name)]
        remedy = "use data of that kind"
        if data.format is not None and len(formats) > 1:
            remedy += f", or leave data.format out: {' or '.join(formats)} read this file"
        raise UserError(what, where=name, remedy=remedy)
    if not name.startswith(PREFIX):
        name = str(Path(name).absolute())
    table = TableColumns.of(task.columns or task.text, task.encoding, task.answers)
    channels = () if data.signal is None else data.signal.channels
    request = ReadRequest(name, table, data.manifest, data.cache, data.reading, channels)
    request = replace(request, form=data.form, scan=data.scan, masks=masks)
    return SOURCES.open(reader, request)


def _check_meaning(
    source: Source, data: DataSource, task: TaskSection, strata: np.ndarray
) -> list[str] | None:
    """Return whose each row is. Raise all at once that makes data look like something else."""
    mistakes: list[UserError] = []
    owners = None
    try:
        owners = find_owners(source, data.patient, data.reading)
    except UserError as mistake:
        mistakes.append(mistake)
    checks = (
        lambda: check_shared(source, data.reading.max_shared),
        lambda: check_left_out(source, task, strata, data.reading),
    )
    for check in checks:
        try:
            check()
        except UserError as mistake:
            mistakes.append(mistake)
    raise_mistakes(mistakes)
    return owners


def _check_readable(source: Source, most: float) -> None:
    """Raise UserError where more than this share of the files had to be left out."""
    files = len(source) + source.skipped
    if source.skipped <= most * files:
        return
    counts = [f"{count}: {problem}" for problem, count in source.problems.items()]
    raise UserError(
        f"{source.skipped} of {files} files cannot be used ({'; '.join(counts)})",
        where=source.where,
        remedy=f"mend them or take them out; data.max_unreadable is {most:g} of all files",
    )


def _targets(source: Source, task: TaskSection) -> tuple[np.ndarray, np.ndarray]:
    """Return target and stratum of each row, read-only: the nodes of a simulation share them."""
    question = TASKS[task.question]
    targets = question.targets(source, task)
    strata = question.strata(targets, task)
    targets.setflags(write=False)
    strata.setflags(write=False)
    return targets, strata


def _compare_labels(source: Source, task: TaskSection) -> str:
    """Return what labels there are, and what the plan wants."""
    present = list_labels(source.labels)
    planned = task.labels or task.classes
    if not planned:
        return f"the data has labels {present}; see task.target"
    return f"the data has labels {present}; the plan wants {list_labels(planned)}"


def _fingerprint(source: Source, splits: Mapping[str, np.ndarray]) -> str:
    rows = np.concatenate(list(splits.values()))
    digests = sorted(source.digests[row] for row in rows.tolist())
    return f"sha256:{hashlib.sha256(b''.join(digests)).hexdigest()}"
