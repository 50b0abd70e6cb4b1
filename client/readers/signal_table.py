"""Signals in a table: CSV with a header (gzipped or not), or Parquet.

    record,time,II,V1,target,patient       a row a sample: rows of one `record` belong together
    r1,0.000,0.12,0.03,normal,p001
    r1,0.004,0.15,0.02,normal,p001

    II_0,II_1,II_2,target,patient          a row a record: columns of a channel by their number
    0.12,0.15,0.11,normal,p001

    path,label,patient                     a row a file, see signal_folder.py
    sounds/p001.wav,normal,p001

`time` (seconds) may be missing: then the record's rate is the plan's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fedgraft.client.readers.manifest import read_listed
from fedgraft.client.readers.reader import SIGNALS, Reader, ReadRequest, TableColumns, has_suffix
from fedgraft.client.readers.recording import BrokenSignal, Recording, trim
from fedgraft.client.readers.signal_file import signal_files
from fedgraft.client.readers.signal_source import Beside, signal_source
from fedgraft.client.readers.source import Source, did_you_mean, row_identity
from fedgraft.client.readers.table_cells import (
    MOST_TOLD,
    PARQUET_SUFFIXES,
    Cells,
    raise_mistakes,
    read_cells,
)
from fedgraft.client.readers.table_encoding import encode, mistaken_cell, read_number
from fedgraft.client.readers.table_file import list_missing_labels
from fedgraft.common.errors import UserError
from fedgraft.common.tasks.labels import join_labels

SUFFIXES = (".csv", ".csv.gz", *PARQUET_SUFFIXES)
RECORD = "record"
TIME = "time"
# of a step between two samples, how much longer or shorter another may be
UNEVEN = 0.05
_ADD = "; add the column, or change backbone.signal.channels or task.target"


@dataclass(frozen=True)
class Tabled:
    """One record of a table.

    Attributes:
        rows: of the table, in the order of its samples.
        recording: its samples, or why it cannot be used.
    """

    rows: Sequence[int]
    recording: Recording | BrokenSignal


def read_tabled(cells: Cells, channels: Sequence[str]) -> list[Tabled]:
    """Return the records of a table, without their labels.

    Raises:
        UserError: it lacks a channel, or a cell is no number; each mistake with line and column.
    """
    if RECORD in cells.header:
        return _read_long(cells, channels)
    return _read_wide(cells, channels)


# ── a row a sample ────────────────────────────────────────────────────────────────────────────────
def _read_long(cells: Cells, channels: Sequence[str]) -> list[Tabled]:
    cells.check_columns(channels, remedy=_ADD)
    encoded = encode(cells, TableColumns.of(channels, {}, targets=()))
    times, mistakes = _read_times(cells)
    raise_mistakes([*encoded.mistakes, *mistakes])
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(cells.column(RECORD)):
        if not name:
            mistakes.append(mistaken_cell(cells, row, RECORD, "no record is named"))
            if len(mistakes) >= MOST_TOLD:
                break
        groups.setdefault(name, []).append(row)
    raise_mistakes(mistakes)
    return [_gather(rows, encoded.values, times) for rows in groups.values()]


def _gather(rows: list[int], values: np.ndarray, times: np.ndarray | None) -> Tabled:
    if times is None:
        return Tabled(rows, Recording(values[rows].T))
    order = np.argsort(times[rows], kind="stable")
    ordered = [rows[place] for place in order.tolist()]
    try:
        rate = _rate_of(times[ordered])
    except BrokenSignal as error:
        return Tabled(ordered, error)
    return Tabled(ordered, Recording(values[ordered].T, rate))


def _rate_of(times: np.ndarray) -> float | None:
    """Return the samples a second of rising times (s); None for a single one."""
    if len(times) == 1:
        return None
    step = (times[-1] - times[0]) / (len(times) - 1)
    if not step > 0 or np.abs(np.diff(times) - step).max() > UNEVEN * step:
        raise BrokenSignal("samples that are not equally far apart in time")
    # a clock of 1 µs: what is behind it is the rounding of decimal numbers
    return float(f"{1 / step:.6g}")


def _read_times(cells: Cells) -> tuple[np.ndarray | None, list[UserError]]:
    """Return the time of each row (s, float64), None where there is none, and what is wrong."""
    if TIME not in cells.header:
        return None, []
    times = np.zeros(len(cells.rows))
    mistakes: list[UserError] = []
    for row, cell in enumerate(cells.column(TIME)):
        try:
            times[row] = read_number(cell)
            if not cell:
                raise ValueError("the time is missing")
        except ValueError as error:
            mistakes.append(mistaken_cell(cells, row, TIME, str(error)))
            if len(mistakes) >= MOST_TOLD:
                break
    return times, mistakes


# ── a row a record ────────────────────────────────────────────────────────────────────────────────
def _read_wide(cells: Cells, channels: Sequence[str]) -> list[Tabled]:
    lengths = {name: _count_columns(cells, name) for name in channels}
    for name, length in lengths.items():
        if not length:
            first = f"{name}_0"
            what = f"no column {RECORD!r} and none {first!r}{did_you_mean(first, cells.header)}"
            remedy = (
                f"write a row a sample (columns {RECORD}, {name}, …), a row a record ({name}_0,"
                f" {name}_1, …), or a row a file (path, label)"
            )
            raise UserError(what, where=f"{cells.where}:1", remedy=remedy)
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        what = f"channels of several lengths: {counts[:200]}"
        remedy = "give every channel as many columns; leave cells behind a record's end empty"
        raise UserError(what, where=f"{cells.where}:1", remedy=remedy)
    columns: list[str] = []
    for name, length in lengths.items():
        columns += [f"{name}_{number}" for number in range(length)]
    encoded = encode(cells, TableColumns.of(columns, {}, targets=()))
    raise_mistakes(encoded.mistakes)
    values = encoded.values.reshape(len(cells.rows), len(channels), -1)
    return [Tabled([row], Recording(trim(record))) for row, record in enumerate(values)]


def _count_columns(cells: Cells, channel: str) -> int:
    """Return how many columns a channel has, from number 0 on."""
    header = set(cells.header)
    length = 0
    while f"{channel}_{length}" in header:
        length += 1
    return length


# ── the reader ────────────────────────────────────────────────────────────────────────────────────
def _read(request: ReadRequest) -> Source:
    path = Path(request.path)
    cells = read_cells(path)
    if request.manifest.path in cells.header:
        return read_listed(request, cells, signal_files(request.channels))
    targets = request.table.targets
    cells.check_columns(targets, remedy=_ADD)
    records = read_tabled(cells, request.channels)
    raise_mistakes([*list_missing_labels(cells, targets), *_list_torn(cells, records, targets)])

    firsts = [record.rows[0] for record in records]
    labels = join_labels([cells.column(name) for name in targets])
    beside = Beside(
        places=[f"{path}:{cells.lines[row]}" for row in firsts],
        columns={name: partial(_texts_at, cells, name, firsts) for name in cells.header},
        identities=[_identity(cells, record) for record in records],
    )
    recordings = [record.recording for record in records]
    own = [labels[row] for row in firsts]
    return signal_source(str(path), recordings, own, beside)


def _texts_at(cells: Cells, name: str, rows: Sequence[int]) -> list[str]:
    texts = cells.column(name)
    return [texts[row] for row in rows]


def _identity(cells: Cells, record: Tabled) -> bytes:
    """Return SHA-256 of everything that a table says of one record."""
    rows = [row_identity(cells.header, cells.rows[row]) for row in record.rows]
    return hashlib.sha256(b"".join(rows)).digest()


def _list_torn(cells: Cells, records: Sequence[Tabled], targets: Sequence[str]) -> list[UserError]:
    """Return what to say of records whose rows are of several classes or patients."""
    mistakes: list[UserError] = []
    for name in (*targets, "patient"):
        if name not in cells.header:
            continue
        texts = cells.column(name)
        for record in records:
            for row in record.rows:
                if texts[row] != texts[record.rows[0]]:
                    what = "not the same as in the record's first row"
                    mistakes.append(mistaken_cell(cells, row, name, what))
                    break
    return mistakes[:MOST_TOLD]


SIGNAL_TABLE = Reader(
    "signal-table",
    matches=has_suffix(*SUFFIXES),
    read=_read,
    gives=lambda _: SIGNALS,
    options=lambda request: (request.channels, request.table, request.manifest),
)
