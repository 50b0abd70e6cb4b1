"""One file of activations: a page that says what it is, a checksum for each row, the rows.

Rows are filled as they are asked for, by any number of threads and processes: a row counts when its
checksum fits, so half a row never does. They are patient data: the folder is 0700, its files 0600.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
import threading
import weakref
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_PAGE = 4096
# bytes of a row's checksum
_SUM = 4
log = logging.getLogger("fedgraft.client")


@dataclass(frozen=True)
class ActivationForm:
    """Shape and memory layout of one record's activations, and the precision they are kept in."""

    shape: tuple[int, ...]
    channels_last: bool
    dtype: str

    @property
    def values(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.values * np.dtype(self.dtype).itemsize

    def flatten(self, h: Tensor) -> np.ndarray:
        """(n, …) → (n, values), channels last where the network has them so."""
        if self.channels_last:
            h = h.permute(0, 2, 3, 1)
        return h.reshape(len(h), -1).numpy().astype(self.dtype)

    def unflatten(self, flat: np.ndarray) -> Tensor:
        """(n, values) → (n, …) float32, laid out in memory as the network's own."""
        h = torch.from_numpy(flat).float()
        if not self.channels_last:
            return h.view(len(h), *self.shape)
        channels, height, width = self.shape
        return h.view(len(h), height, width, channels).permute(0, 3, 1, 2)


class ActivationFile:
    """One file of activations, open.

        file = make_file(path, form, rows=len(source), cut="layer3.2")
        values, missing = file.read(np.array([0, 7]))

    Args:
        path: the file; it must be there.
        form: of a row.
        rows: how many the data have.
    """

    def __init__(self, path: Path, form: ActivationForm, rows: int) -> None:
        self._descriptor = os.open(path, os.O_RDWR)
        weakref.finalize(self, os.close, self._descriptor)
        os.utime(self._descriptor)
        self.form = form
        self._start = _start_of_rows(rows)
        # as arrays: to index a memmap takes twice as long
        self._sums = np.asarray(np.memmap(path, np.uint32, "r", _PAGE, (rows,)))
        values = np.memmap(path, form.dtype, "r", self._start, (rows, form.values))
        self._values = np.asarray(values)
        # rows whose checksum this process has seen to fit
        self._known = np.zeros(rows, bool)
        self._claimed = np.zeros(rows, bool)
        self._claiming = threading.Lock()
        self._writable = True

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows `(n, values)`, and which of them are not there or damaged `(n,)`."""
        # before the values: a row that another thread keeps in between is not in them
        fits = self._known[rows]
        values = self._values[rows]
        if fits.all():
            return values, ~fits
        for position in np.flatnonzero(~fits):
            fits[position] = self._sums[rows[position]] == _checksum(values[position])
        self._known[rows[fits]] = True
        return values, ~fits

    def claim(self, count: int, after: int) -> np.ndarray:
        """Return at most `count` rows that nobody has computed yet, to fill a block.

        A block costs the same when full.
        """
        begin = after + 1
        with self._claiming:
            free = (self._sums[begin:] == 0) & ~self._claimed[begin:]
            rows = np.flatnonzero(free)[:count] + begin
            self._claimed[rows] = True
        return rows

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Keep rows. A full disk is no error: what could not be kept is computed again."""
        if not self._writable:
            return
        try:
            for row, value in zip(rows.tolist(), values, strict=True):
                # the row before its checksum: what a crash cuts off does not count
                os.pwrite(self._descriptor, value.tobytes(), self._start + row * value.nbytes)
                checksum = np.uint32(_checksum(value))
                os.pwrite(self._descriptor, checksum.tobytes(), _PAGE + _SUM * row)
        except OSError as error:
            self._writable = False
            log.warning("activations are kept no longer: %s", error.strerror)


def file_size(form: ActivationForm, rows: int) -> int:
    """Return the bytes of a file for so many rows."""
    return _start_of_rows(rows) + rows * form.row_bytes


def open_file(path: Path, rows: int) -> ActivationFile:
    """Return a file that is there. Raise OSError, ValueError, KeyError or TypeError."""
    with path.open("rb") as file:
        about = json.loads(file.read(_PAGE).rstrip(b"\0"))
    form = ActivationForm(tuple(about["shape"]), about["channels_last"], about["dtype"])
    return ActivationFile(path, form, rows)


def make_file(path: Path, form: ActivationForm, rows: int, cut: str) -> ActivationFile:
    """Return an empty file, unless another process has made it meanwhile. Raises OSError.

    Args:
        cut: the first stage that trains; who looks into the file can read it.
    """
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        about = json.dumps({**asdict(form), "cut": cut})
        os.write(descriptor, about.encode().ljust(_PAGE, b"\0"))
        # takes no space before rows are written
        os.truncate(descriptor, file_size(form, rows))
        # unlike a rename, never over a file that another process has begun to fill
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
    finally:
        os.close(descriptor)
        os.unlink(part)
    return ActivationFile(path, form, rows)


def _start_of_rows(rows: int) -> int:
    """Return where rows begin: on the page after the last checksum's."""
    pages = math.ceil(_SUM * rows / _PAGE)
    return _PAGE + pages * _PAGE


def _checksum(value: np.ndarray) -> int:
    # 0 says that the row was never written
    return zlib.crc32(value.tobytes()) or 1
