"""A backbone that is on its way to this node: what has come of it stays, part by part.

    download = Download(folder)
    download.begin(part.table)
    download.keep(part)
    if not download.missing():
        download.finish(fingerprint)
        download.data.replace(path)

`data` is the .safetensors file that it becomes: each part goes to its place, and the head is
written last, so that no second copy is ever made, in memory or on disk. `parts.json` is the table
of its tensors and the parts that are there with their SHA-256; a part is written down there once
its bytes are on the disk. So a process that is killed, or a cable that is cut, costs one part.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedgraft.common.errors import Code, Refused
from fedgraft.common.files.tensor_files import fingerprint_head
from fedgraft.common.files.whole_files import write_whole
from fedgraft.common.wire.backbone_parts import Part, PartTable
from fedgraft.common.wire.layout import BadUpdate

# bytes that are read at once to be hashed
BLOCK = 1_000_000
# of the length that a .safetensors file begins with, and of which its head's is a multiple
HEAD_LENGTH = 8
# torch's name of a kind of number → its name in a .safetensors file
CODES = {
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
    "float32": "F32",
    "int32": "I32",
    "uint32": "U32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int16": "I16",
    "uint16": "U16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Download:
    """An unfinished backbone in a folder of its own; whoever changes it holds the store's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._notes = folder / "parts.json"
        self.table: PartTable | None = None
        # number → SHA-256
        self._kept: dict[int, str] = {}
        self._read_notes()

    def begin(self, table: PartTable) -> None:
        """Begin with a table, or go on: what came under the same one stays."""
        if self.table is not None and self.table.digest == table.digest:
            return
        self.remove()
        with telling_of_room():
            self.folder.mkdir(mode=0o700)
            self.data.touch(mode=0o600)
            self.table = table
            self._write_notes()

    def keep(self, part: Part) -> None:
        """Write a part to its place, if it is not there.

        Raises:
            Refused: its bytes are not those that were sent, or the disk is full; what is here stays
                as it was.
        """
        if not part.is_whole:
            what = f"part {part.number} of the backbone arrived damaged"
            raise Refused(Code.DAMAGED, what)
        if self._kept.get(part.number) == part.digest:
            return
        start, _ = part.table.bounds_of(part.number)
        with telling_of_room():
            self._write(len(head_of(part.table)) + start, part.pieces)
            # only now: what is written down is on the disk
            self._kept[part.number] = part.digest
            self._write_notes()

    def missing(self) -> list[int]:
        """Return the numbers of the parts that have not come yet."""
        if self.table is None:
            return []
        return [number for number in self.table.numbers if number not in self._kept]

    def finish(self, fingerprint: str) -> None:
        """Verify all that came, and make the file whole.

        Raises:
            Refused: it is not the backbone of this fingerprint. Where parts have changed on this
                disk, these alone are forgotten; else what was sent is wrong, and nothing is kept.
        """
        assert self.table is not None
        try:
            arrived = self._hash_tensors(self.table)
            if arrived == fingerprint:
                self._write(0, [head_of(self.table)])
                return
            changed = [number for number in self._kept if self._has_changed(number)]
        except OSError:
            changed = list(self._kept)
            arrived = "not to be read"
        if not changed or len(changed) == self.table.parts:
            self.remove()
        else:
            for number in changed:
                del self._kept[number]
            self._write_notes()
        what = f"the backbone that arrived is {arrived}, not {fingerprint} as offered"
        raise Refused(Code.DAMAGED, what)

    def remove(self) -> None:
        """Forget all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.table = None
        self._kept = {}

    # ── what is there ─────────────────────────────────────────────────────────────────────────────
    def _read_notes(self) -> None:
        """Read what was written down; notes that cannot be read, or of a file that is gone, are
        those of a download that has to begin anew.
        """
        try:
            notes = json.loads(self._notes.read_text())
            table = PartTable.read(notes["table"])
            kept = {int(number): str(digest) for number, digest in notes["kept"].items()}
            size = self.data.stat().st_size
        except (OSError, ValueError, KeyError, TypeError, AttributeError, BadUpdate):
            return
        self.table = table
        head = len(head_of(table))
        for number, digest in kept.items():
            # a file that was cut short has lost its last parts
            if number in table.numbers and head + table.bounds_of(number)[1] <= size:
                self._kept[number] = digest

    def _write(self, place: int, pieces: Sequence[bytes]) -> None:
        """Write bytes to a place of the file, and bring them to the disk."""
        with self.data.open("r+b") as file:
            file.seek(place)
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    def _write_notes(self) -> None:
        assert self.table is not None
        notes = {"table": self.table.to_json(), "kept": self._kept}
        write_whole(self._notes, json.dumps(notes), mode=0o600)

    def _has_changed(self, number: int) -> bool:
        """Return whether a part's bytes are no longer those that were written."""
        assert self.table is not None
        start, end = self.table.bounds_of(number)
        digest = hashlib.sha256()
        with self.data.open("rb") as file:
            file.seek(len(head_of(self.table)) + start)
            for block in read_blocks(file, end - start):
                digest.update(block)
        return digest.hexdigest() != self._kept[number]

    def _hash_tensors(self, table: PartTable) -> str:
        """Return the fingerprint of the tensors in the file, a block at a time."""
        digest = hashlib.sha256()
        head = len(head_of(table))
        places = {row.name: (row, start) for row, start in table.starts()}
        with self.data.open("rb") as file:
            for name in sorted(places):
                row, start = places[name]
                digest.update(fingerprint_head(name, row.kind, row.shape))
                file.seek(head + start)
                for block in read_blocks(file, row.nbytes):
                    digest.update(block)
        return f"sha256:{digest.hexdigest()}"


def head_of(table: PartTable) -> bytes:
    """Return what a .safetensors file of these tensors begins with: the length of its head, and
    kind, shape and place of each.
    """
    about = {}
    for row, start in table.starts():
        about[row.name] = {
            "dtype": CODES[row.kind],
            "shape": list(row.shape),
            "data_offsets": [start, start + row.nbytes],
        }
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEAD_LENGTH)
    return len(text).to_bytes(HEAD_LENGTH, "little") + text


def read_blocks(file: BinaryIO, length: int) -> Iterator[bytes]:
    """Yield the next bytes of a file, as many as are asked for or are there."""
    while length > 0:
        block = file.read(min(BLOCK, length))
        if not block:
            return
        yield block
        length -= len(block)


@contextmanager
def telling_of_room() -> Iterator[None]:
    """Raise `Refused` in place of the error of a disk that is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise Refused(Code.STORAGE, "this node's disk has no room for the backbone") from error
