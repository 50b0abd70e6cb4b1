"""One hospital's data set under one plan: its records, their classes, and which are for training
and testing.

A file is decoded once per process and shared, read-only: a thousand simulated nodes hold one array.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from fedgraft.client.data.choose_splits import choose_splits
from fedgraft.client.readers.arrays import read_npz
from fedgraft.client.readers.bundled import TABLES, read_bundled
from fedgraft.client.readers.folder import holds_dicom, read_folder
from fedgraft.client.readers.manifest import USUAL, ManifestColumns, read_manifest
from fedgraft.client.readers.registry import FORMATS, PREFIX
from fedgraft.client.readers.source import Label, Prepare, Source, plain, unreadable
from fedgraft.client.readers.table_file import NONE, PARQUET, Categories, read_table
from fedgraft.common.errors import UserError

PATIENT = "patient"  # the column of patients where node.yaml names none
MAX_UNREADABLE = 0.01


@dataclass(frozen=True, eq=False)
class Records:
    """A hospital's records, by row number of its file.

    Attributes:
        labels: class of each row, int64 `(n,)`; −1 for rows that are not part of the task.
        splits: row numbers of "train", "val" and "test", int64, rising; together the rows of the
            task.
        fingerprint: "sha256:…" over the contents of the rows in the splits, whatever their order.
        skipped: records that could not be read and are left out.
        owners: whose each row is; None where the data does not say.
    """

    labels: np.ndarray
    splits: Mapping[str, np.ndarray]
    fingerprint: str
    skipped: int
    source: Source
    owners: list[str] | None = None

    def read(self, rows: np.ndarray, prepare: Prepare | None = None) -> Tensor:
        """Values of these rows.

        Images: uint8 (or uint16) `(n, C, H, W)`, C = 1 where grey; with `prepare`, what it makes of
            them (image by image where they are files, which may differ in size). Tables: float32
            `(n, F)`, NaN where missing.
        """
        return self.source.read(np.asarray(rows, np.int64), prepare)

    def column(self, name: str) -> list[str]:
        """Each row's text in one column of a table, or array of an archive. Raises `UserError`
        where there is none.
        """
        if self.source.column is None:
            remedy = (
                "columns are in tables and manifests, and arrays with a value for each image in"
                " archives (.npz)"
            )
            raise UserError(f"no column {name!r}", where=self.source.where, remedy=remedy)
        return self.source.column(name)

    def patients(self, name: str) -> list[str] | None:
        """Whose each row is, by the column or array of that name; None where there is none."""
        return _owners(self.source, name)


def open_records(
    *,
    path: str | Path,
    format: str | None = None,
    rows: str | Path | None = None,
    test_fraction: float = 0.2,
    kind: str,
    classes: Sequence[str],
    labels: Sequence[Label] | None = None,
    columns: Sequence[str] = (),
    categories: Categories = NONE,
    target: str = "target",
    patient: str | None = None,
    manifest: Sequence[str] = USUAL,
    max_unreadable: float = MAX_UNREADABLE,
    cache: Path | None = None,
    seed: int = 0,
) -> Records:
    """Open a hospital's data for a plan's task, and check it.

    Args:
        path: file, folder, or `sklearn:<name>`.
        format: one of FORMATS; None: told from the path and the kind of task.
        rows: .npz with the row numbers of train, val and test; None: the file's own splits, or a
            share `test_fraction` of each class by content.
        kind: "image-classification" or "tabular-classification".
        classes: the plan's class names.
        labels: the value in the data that stands for each class; rows with another label are then
            no part of the task. None: numbers 0 … K−1 or the names themselves, and another label is
            an error.
        columns: feature columns of a table, in order.
        categories: values of those of them that hold categories, by the column's name.
        target: label column of a table.
        patient: column or array that says whose each record is; None: "patient", if there is one.
        manifest: what a manifest's columns of paths, labels and splits are called.
        max_unreadable: share of the files that may be unusable; they are left out and counted.
        cache: folder to remember there which image files were looked at already.

    Raises:
        UserError: the data is missing, corrupt, or not what the plan says; names file, line and
            column.
    """
    kept = (tuple(columns), _frozen(categories), target, ManifestColumns(*manifest))
    source = _open(path, format or format_of(path, kind), kind, *kept, cache)
    _check_readable(source, max_unreadable)
    owners = _owners(source, patient or PATIENT)
    if owners is None and patient not in (None, PATIENT):
        if source.column is not None:
            source.column(patient)  # says which columns there are
        what = f"nothing in {patient!r}, and data.patient says that it tells whose each record is"
        raise UserError(
            what,
            where=source.where,
            remedy="name the right column or array, or leave data.patient out",
        )
    numbers = _class_numbers(source, tuple(classes), None if labels is None else tuple(labels))
    splits = choose_splits(
        labels=numbers,
        digests=source.digests,
        own=source.splits,
        rows=None if rows is None else Path(rows),
        test_fraction=test_fraction,
        seed=seed,
        patients=owners,
        where=source.where,
    )
    if not len(splits["train"]):
        raise UserError(
            "no training examples of the plan's classes",
            where=str(rows or source.where),
            remedy=(
                f"the data has labels {_some(source.labels)}; the plan wants"
                f" {_some(labels or classes)}"
            ),
        )
    return Records(
        labels=numbers,
        splits=splits,
        fingerprint=_fingerprint(source, splits),
        skipped=source.skipped,
        source=source,
        owners=owners,
    )


def format_of(path: str | Path, kind: str) -> str:
    """The format of data at a path: by its prefix, its suffix, or what a folder holds. A table for
    a task with images is a manifest.
    """
    if str(path).startswith(PREFIX):
        return "sklearn"
    if Path(path).is_dir():
        return "dicom" if holds_dicom(Path(path)) else "image-folder"
    suffix = Path(path).suffix.lower()
    if suffix in (".csv", *PARQUET):
        table = "csv" if suffix == ".csv" else "parquet"
        return table if kind == "tabular-classification" else "manifest"
    if suffix == ".npz":
        return "npz"
    remedy = "give a .npz, .csv or .parquet file, a folder of class folders, or sklearn:digits"
    if not Path(path).exists():
        raise UserError("no such file or folder", where=str(path), remedy=remedy)
    raise UserError(f"data of unknown format {suffix!r}", where=str(path), remedy=remedy)


def _open(
    path: str | Path,
    format: str,
    kind: str,
    columns: tuple[str, ...],
    categories: tuple[tuple[str, tuple[Label, ...]], ...],
    target: str,
    manifest: ManifestColumns,
    cache: Path | None,
) -> Source:
    """The decoded file, kept while its stamp (modification times and sizes) stays the same."""
    name = str(path)
    is_table = format in ("csv", "parquet") or (
        format == "sklearn" and name.removeprefix(PREFIX) in TABLES
    )
    if format not in FORMATS:
        raise UserError(
            f"data.format {format!r}", where=name, remedy=f"write one of {', '.join(FORMATS)}"
        )
    if is_table != (kind == "tabular-classification"):
        found = "a table" if is_table else "images"
        raise UserError(
            f"{found}, but the plan's task is {kind}", where=name, remedy="use data of that kind"
        )
    if format == "sklearn":
        stamp: tuple = ()
    else:
        name, stamp = str(Path(path).absolute()), _stamp(Path(path), format)
    asked = (
        (columns, categories, target) if is_table else (manifest,) if format == "manifest" else ()
    )
    key = (name, format, asked, stamp)
    with _reading:  # or two threads would decode the same file at once
        if key not in _opened:
            while len(_opened) >= MOST_OPEN:
                _opened.pop(next(iter(_opened)))
            _opened[key] = _decoded(
                name, format, columns, dict(categories), target, manifest, cache
            )
        return _opened[key]


MOST_OPEN = 8  # files that are kept decoded; the oldest goes first
_reading = threading.Lock()
_opened: dict[tuple, Source] = {}


def _decoded(
    name: str,
    format: str,
    columns: tuple[str, ...],
    categories: Categories,
    target: str,
    manifest: ManifestColumns,
    cache: Path | None,
) -> Source:
    if format == "sklearn":
        return read_bundled(name, columns, categories)
    path = Path(name)
    if format in ("csv", "parquet"):
        return read_table(path, columns, target, categories)
    if format == "manifest":
        return read_manifest(path, manifest, cache=cache)
    return (
        read_npz(path)
        if format == "npz"
        else read_folder(path, dicom=format == "dicom", cache=cache)
    )


def _stamp(path: Path, format: str) -> tuple:
    """What changes when the data does. Image files are looked at by their folders here, one by one
    when read.
    """
    try:
        folders = (
            [folder for folder, _, _ in os.walk(path)]
            if format in ("image-folder", "dicom")
            else [str(path)]
        )
        return tuple(
            (each, (found := os.stat(each)).st_mtime_ns, found.st_size)
            for each in folders or [path]
        )
    except OSError as error:
        raise unreadable(path, error) from None


def _check_readable(source: Source, most: float) -> None:
    """Raises UserError where more than this share of the files had to be left out."""
    files = len(source) + source.skipped
    if source.skipped > most * files:
        counted = "; ".join(f"{count}: {problem}" for problem, count in source.problems.items())
        raise UserError(
            f"{source.skipped} of {files} files cannot be used ({counted})",
            where=source.where,
            remedy=f"mend them or take them out; data.max_unreadable is {most:g} of all files",
        )


@functools.lru_cache(maxsize=16)
def _owners(source: Source, name: str) -> list[str] | None:
    """Whose each row is, by the column or array of that name; None where it is not there, or empty
    everywhere.
    """
    try:
        owners = [owner.strip() for owner in source.column(name)] if source.column else []
    except UserError:
        return None
    return owners if any(owners) else None


def _frozen(categories: Categories) -> tuple[tuple[str, tuple[Label, ...]], ...]:
    return tuple((name, tuple(values)) for name, values in sorted(categories.items()))


@functools.lru_cache(maxsize=16)
def _class_numbers(
    source: Source, classes: tuple[str, ...], labels: tuple[Label, ...] | None
) -> np.ndarray:
    """Class of each row, −1 where the plan states its labels and this row's is not among them."""
    if labels is not None:
        known = {plain(label): number for number, label in enumerate(labels)}
    else:
        known: dict[Label, int] = {number: number for number in range(len(classes))}
        known |= {name: number for number, name in enumerate(classes)}
    numbers = np.array([known.get(label, -1) for label in source.labels], np.int64)
    if labels is None and (numbers < 0).any():
        row = int(np.argmax(numbers < 0))
        raise UserError(
            f"label {source.labels[row]!r} is not one of the plan's {len(classes)} classes",
            where=source.place(row),
            remedy=(
                f"the data has labels {_some(source.labels)}, the plan classes {_some(classes)}; "
                "name them all in task.classes, or list in task.labels the ones to use"
            ),
        )
    numbers.setflags(write=False)
    return numbers


def _fingerprint(source: Source, splits: Mapping[str, np.ndarray]) -> str:
    rows = np.concatenate(list(splits.values())).tolist()
    return (
        "sha256:"
        + hashlib.sha256(b"".join(sorted(source.digests[row] for row in rows))).hexdigest()
    )


def _some(values: Sequence[Label]) -> str:
    """A few distinct values, for a message."""
    distinct = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    return ", ".join(str(value) for value in distinct[:12]) + (", …" if len(distinct) > 12 else "")
