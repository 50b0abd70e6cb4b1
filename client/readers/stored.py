"""Rows of a large array in an uncompressed .npz, read from the file when they are asked for.

`numpy.savez` stores each array as it is, so a row has a place in the file. Reading rows there keeps
memory flat, where loading the array would hold all of it, and mapping it would fill memory page by
page.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

LARGE = 256 * 2**20  # bytes; smaller arrays are loaded: many simulated nodes share them
_PIECE = 2**20


@dataclass(frozen=True)
class StoredRows:
    """An array `(n, …)` of uint8 or uint16 in a file.

    Attributes:
        offset: of the first row in the file, bytes.
        shape: of the array.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """These rows, `(len(rows), …)`. Raises OSError or ValueError where the file has changed."""
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if not len(rows):
            return taken
        with open(self.path, "rb", buffering=0) as file:
            for at, row in enumerate(rows.tolist()):
                file.seek(self.offset + row * taken[0].nbytes)
                if file.readinto(taken[at]) != taken[0].nbytes:  # pyright: ignore[reportArgumentType]
                    raise ValueError("the file has become shorter")
        return taken


def stored_rows(path: Path, name: str) -> StoredRows | None:
    """A large array of an archive, its checksum verified; None where it is to be loaded instead.

    Raises:
        zipfile.BadZipFile, OSError, ValueError, KeyError: the archive is broken.
    """
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < LARGE:
            return None
        with archive.open(entry) as member:
            version = npy.read_magic(member)
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(
                version
            )
            if read is None:
                return None
            shape, fortran, dtype = read(member)
            begin = member.tell()
            if fortran or dtype not in (np.uint8, np.uint16) or not shape or not dtype.isnative:
                return None
            while member.read(_PIECE):  # to the end, where the checksum is compared
                pass
    with open(path, "rb") as file:
        file.seek(
            entry.header_offset + 26
        )  # of a local header's 30 bytes the lengths of name and extra field
        name_length, extra_length = struct.unpack("<HH", file.read(4))
    offset = entry.header_offset + 30 + name_length + extra_length + begin
    return StoredRows(path, offset, shape, dtype)
