"""Signals in a NumPy archive: `series` (n, channels, T), `labels` (n,), and perhaps `rate` (Hz),
one for all or one a record; other arrays with a value a record are columns.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from fedgraft.client.readers.archive import load_archive
from fedgraft.client.readers.reader import SIGNALS, Reader, has_suffix
from fedgraft.client.readers.recording import BrokenSignal, Recording, choose_channels, trim
from fedgraft.client.readers.signal_source import Beside, signal_source
from fedgraft.client.readers.source import Source
from fedgraft.client.readers.stored import StoredRows
from fedgraft.common.errors import UserError
from fedgraft.common.tasks.labels import plain_label

SERIES = "series"
LABELS = "labels"
RATE = "rate"
_LAYOUT = "write arrays series (n, channels, T) and labels (n,), and rate where it is known"
# bytes of one array
_LARGEST = 2**33
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_archive(path: Path, channels: tuple[str, ...]) -> Source:
    """Return the signals of an archive with their labels.

    Raises:
        UserError: the file is missing or corrupt, holds pickled objects, or has another layout.
    """
    arrays = load_signals(path)
    if LABELS not in arrays:
        present = ", ".join(sorted(arrays)[:8])
        raise UserError(f"no array {LABELS!r}; found {present}", where=str(path), remedy=_LAYOUT)
    count = len(arrays[SERIES])
    labels = arrays[LABELS].reshape(-1)
    if len(labels) != count:
        what = f"{LABELS} has shape {arrays[LABELS].shape} for {count} signals"
        raise UserError(what, where=str(path), remedy=_LAYOUT)
    columns = {}
    for name, array in arrays.items():
        if name not in (SERIES, LABELS) and array.size == count:
            columns[name] = partial(_texts, array)
    beside = Beside([f"{path}: {SERIES}[{row}]" for row in range(count)], columns)
    own = [plain_label(label) for label in labels.tolist()]
    return signal_source(str(path), list_recordings(arrays, channels, path), own, beside)


def load_signals(path: Path) -> Mapping[str, np.ndarray]:
    """Return the arrays of an archive with `series` among them, `(n, channels, T)`.

    Raises:
        UserError: as `read_archive`.
    """
    arrays, _ = load_archive(path, leave=_check_claim)
    series = arrays.get(SERIES)
    if series is None:
        present = ", ".join(sorted(arrays)[:8]) or "nothing"
        raise UserError(f"no array {SERIES!r}; found {present}", where=str(path), remedy=_LAYOUT)
    if series.ndim == 2:
        series = series[:, None]
    if series.ndim != 3 or series.dtype.kind not in "iuf":
        what = f"{SERIES} is {series.dtype}{arrays[SERIES].shape}"
        raise UserError(what, where=str(path), remedy=_LAYOUT)
    return arrays | {SERIES: series}


def list_recordings(
    arrays: Mapping[str, np.ndarray], channels: tuple[str, ...], path: Path
) -> list[Recording | BrokenSignal]:
    """Return each signal, or why it cannot be used. Raise `UserError` for rates that are none."""
    series = arrays[SERIES]
    rates: list[float | None] = [None] * len(series)
    stated = arrays.get(RATE)
    if stated is not None:
        if stated.dtype.kind not in "iuf" or stated.size not in (1, len(series)):
            what = f"{RATE} is {stated.dtype}{stated.shape} for {len(series)} signals"
            raise UserError(what, where=str(path), remedy=_LAYOUT)
        rates = np.broadcast_to(stated.reshape(-1).astype(float), len(series)).tolist()
    recordings: list[Recording | BrokenSignal] = []
    for values, rate in zip(series, rates, strict=True):
        try:
            chosen = choose_channels(trim(values.astype(np.float32)), channels)
            recordings.append(Recording(chosen, rate))
        except BrokenSignal as error:
            recordings.append(error)
    return recordings


def _texts(array: np.ndarray) -> list[str]:
    return [str(value) for value in array.reshape(-1).tolist()]


def _check_claim(path: Path, name: str) -> StoredRows | None:
    """Raise ValueError where an array claims to be larger than what lies there of it: NumPy would
    make room for it first.
    """
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
        with archive.open(entry) as member:
            read_header = _READ_HEADER.get(npy.read_magic(member))
            if read_header is None:
                raise ValueError("an array of an unknown version")
            shape, _, dtype = read_header(member)
    # Python's numbers: NumPy's would wrap around
    size = dtype.itemsize
    for side in shape:
        size *= int(side)
    if size > min(entry.file_size, _LARGEST):
        raise ValueError("an array that claims to be larger than it is")
    return None


SIGNAL_ARCHIVE = Reader(
    "signal-npz",
    matches=has_suffix(".npz"),
    read=lambda request: read_archive(Path(request.path), request.channels),
    gives=lambda _: SIGNALS,
    options=lambda request: request.channels,
)
