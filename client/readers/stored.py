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

# bytes; smaller arrays are loaded: many simulated nodes share them
LARGE = 256 * 2**20
_PIECE = 2**20
# bytes of a local file header before the name, and where in it the lengths of name and extra
# field stand (PKWARE, APPNOTE 4.3.7)
_HEADER = 30
_LENGTHS_AT = 26
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


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
        """Return these rows, `(len(rows), …)`.

        Raise OSError or ValueError where the file has changed.
        """
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if not len(rows):
            return taken
        size = taken[0].nbytes
        with open(self.path, "rb", buffering=0) as file:
            for at, row in enumerate(rows.tolist()):
                file.seek(self.offset + row * size)
                count = file.readinto(taken[at])  # pyright: ignore[reportArgumentType]
                if count != size:
                    raise ValueError("the file has become shorter")
        return taken


def stored_rows(path: Path, name: str) -> StoredRows | None:
    """Return a large array of an archive, its checksum verified; None where it is to be loaded.

    Raises:
        zipfile.BadZipFile, OSError, ValueError, KeyError: the archive is broken.
    """
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < LARGE:
            return None
        with archive.open(entry) as member:
            read_header = _READ_HEADER.get(npy.read_magic(member))
            if read_header is None:
                return None
            shape, fortran, dtype = read_header(member)
            begin = member.tell()
            if fortran or dtype not in (np.uint8, np.uint16) or not shape or not dtype.isnative:
                return None
            # to the end, where the checksum is compared
            while member.read(_PIECE):
                pass
    with open(path, "rb") as file:
        file.seek(entry.header_offset + _LENGTHS_AT)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
    offset = entry.header_offset + _HEADER + name_length + extra_length + begin
    return StoredRows(path, offset, shape, dtype)
