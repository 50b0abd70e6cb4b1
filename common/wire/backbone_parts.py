"""A backbone on its way: its tensors as one run of bytes, cut into parts of one size.

    table = PartTable.of(backbone_state(backbone), 44_000_000)
    for number in table.numbers:
        content = part_content(cut_part(state, table, number), backbone.fingerprint)

The tensors lie one after the other, those of wide numbers first, then by name: so each begins where
its numbers may begin in a file. A part may end within a tensor. It carries its own SHA-256, and the
table of all tensors, so that whoever receives one knows where its bytes belong.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedgraft.common.wire.layout import BadUpdate

BACKBONE = "backbone"
ABOUT = "about"
# bytes that Flower copies at once; it holds a larger array three times over while it is read
PIECE = 4_000_000
MOST_PARTS = 10_000
MOST_TENSORS = 100_000
# a name that a .safetensors file keeps for itself
RESERVED = "__metadata__"
# torch's name of a kind of number → its width in bytes
WIDTHS = {
    "float64": 8,
    "int64": 8,
    "uint64": 8,
    "float32": 4,
    "int32": 4,
    "uint32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int16": 2,
    "uint16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


@dataclass(frozen=True)
class TensorRow:
    """A tensor's name, kind of numbers (torch's name for it) and shape."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return WIDTHS[self.kind] * math.prod(self.shape)


@dataclass(frozen=True)
class PartTable:
    """Which tensors make up a backbone, in the order of their bytes, and how these are cut.

    Attributes:
        rows: of all tensors.
        part_size: bytes of every part but the last.
    """

    rows: tuple[TensorRow, ...]
    part_size: int

    @classmethod
    def of(cls, state: Mapping[str, Tensor], part_size: int) -> PartTable:
        """Return the table of a backbone's tensors."""
        rows = []
        for name, tensor in state.items():
            kind = str(tensor.dtype).removeprefix("torch.")
            rows.append(TensorRow(name, kind, tuple(tensor.shape)))
        return cls(tuple(sorted(rows, key=_place)), part_size)

    @classmethod
    def read(cls, text: str) -> PartTable:
        """Return a table that came as JSON. Raise `BadUpdate` where it is none."""
        try:
            content = json.loads(text)
            part_size = content["part-size"]
            rows = tuple(_read_row(row) for row in content["tensors"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BadUpdate("a table of a backbone's tensors that cannot be read") from error
        table = cls(rows, part_size)
        _check_table(table)
        return table

    def to_json(self) -> str:
        """Return what `read` reads."""
        tensors = [[row.name, row.kind, list(row.shape)] for row in self.rows]
        return json.dumps({"part-size": self.part_size, "tensors": tensors})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the table: parts of equal tables fit together."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(row.nbytes for row in self.rows)

    @property
    def parts(self) -> int:
        """How many parts there are; an empty backbone has one."""
        return max(1, math.ceil(self.size / self.part_size))

    @property
    def numbers(self) -> range:
        """The parts' numbers, from 1."""
        return range(1, self.parts + 1)

    def bounds_of(self, number: int) -> tuple[int, int]:
        """Return where a part begins and ends in the run of bytes."""
        start = (number - 1) * self.part_size
        return start, min(start + self.part_size, self.size)

    def starts(self) -> Iterator[tuple[TensorRow, int]]:
        """Yield every row with the place of its first byte."""
        start = 0
        for row in self.rows:
            yield row, start
            start += row.nbytes


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a backbone.

    Attributes:
        number: from 1.
        pieces: its bytes, in pieces that Flower copies one at a time.
        digest: the SHA-256 of its bytes that its sender computed.
    """

    table: PartTable
    number: int
    pieces: Sequence[bytes]
    digest: str

    @property
    def is_whole(self) -> bool:
        """Whether it has as many bytes as the table says, and those that its sender hashed."""
        start, end = self.table.bounds_of(self.number)
        length = sum(len(piece) for piece in self.pieces)
        return length == end - start and hash_pieces(self.pieces) == self.digest


def cut_part(state: Mapping[str, Tensor], table: PartTable, number: int) -> Part:
    """Return a part of a backbone's bytes; nothing else of it is copied."""
    start, end = table.bounds_of(number)
    pieces = []
    for first in range(start, end, PIECE):
        pieces.append(_read_bytes(state, table, first, min(first + PIECE, end)))
    return Part(table, number, pieces, hash_pieces(pieces))


def hash_pieces(pieces: Sequence[bytes]) -> str:
    """Return the SHA-256 of bytes that come in pieces, 64 hex digits."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _read_bytes(state: Mapping[str, Tensor], table: PartTable, start: int, end: int) -> bytes:
    """Return the bytes between two places of the run."""
    found: list[memoryview] = []
    for row, first in table.starts():
        begin = max(start - first, 0)
        stop = min(end - first, row.nbytes)
        if begin < stop:
            raw = state[row.name].detach().cpu().contiguous().reshape(-1)
            found.append(raw.view(torch.uint8).numpy().data[begin:stop])
    return b"".join(found)


# ── as a message ──────────────────────────────────────────────────────────────────────────────────
def part_content(part: Part, fingerprint: str) -> RecordDict:
    """Return what a message with a part carries."""
    arrays: dict[str, Array] = {}
    for place, piece in enumerate(part.pieces):
        # as they are: no array of NumPy's is made of them
        arrays[f"{place:06d}"] = Array("uint8", (len(piece),), "bytes", piece)
    about: dict[str, Any] = {
        "fingerprint": fingerprint,
        "part": part.number,
        "parts": part.table.parts,
        "tensors": part.table.to_json(),
        "sha256": part.digest,
    }
    return RecordDict({BACKBONE: ArrayRecord(arrays), ABOUT: ConfigRecord(about)})


def read_part(content: RecordDict) -> Part:
    """Return the part that a message carries; whether it is whole is asked later.

    Raises:
        BadUpdate: it is no part of what its table describes.
    """
    about = content.config_records.get(ABOUT, ConfigRecord())
    number = about.get("part")
    parts = about.get("parts")
    named = f"part {str(number)[:20]} of {str(parts)[:20]} of a backbone"
    if not isinstance(number, int) or not isinstance(parts, int):
        raise BadUpdate(named)
    if not 1 <= number <= parts <= MOST_PARTS:
        raise BadUpdate(named)
    table = PartTable.read(str(about.get("tensors")))
    if table.parts != parts:
        raise BadUpdate(f"{named}, whose table says {table.parts}")
    arrays = content.array_records.get(BACKBONE, ArrayRecord())
    pieces = [arrays[key].data for key in sorted(arrays)]
    return Part(table, number, pieces, str(about.get("sha256")))


def _place(row: TensorRow) -> tuple[int, str]:
    return -WIDTHS[row.kind], row.name


def _read_row(row: Any) -> TensorRow:
    name, kind, shape = row
    return TensorRow(str(name), str(kind), tuple(shape))


def _check_table(table: PartTable) -> None:
    """Raise `BadUpdate` for a table that no backbone has."""
    if not isinstance(table.part_size, int) or table.part_size < 1:
        raise BadUpdate(f"parts of {str(table.part_size)[:20]} bytes")
    if len(table.rows) > MOST_TENSORS:
        raise BadUpdate(f"a backbone of {len(table.rows)} tensors; {MOST_TENSORS} are taken")
    names = {RESERVED}
    for row in table.rows:
        whole = [isinstance(length, int) and length >= 0 for length in row.shape]
        if row.kind not in WIDTHS or not all(whole) or row.name in names:
            raise BadUpdate(f"a backbone's tensor {row.name[:80]!r} that cannot be kept")
        names.add(row.name)
    if list(table.rows) != sorted(table.rows, key=_place):
        raise BadUpdate("a table of a backbone's tensors that is out of order")
