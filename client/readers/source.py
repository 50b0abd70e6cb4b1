"""What every reader returns: all records of a file, before a plan picks among them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.files.mistakes import nearest

Prepare = Callable[[Tensor], Tensor]
Label = int | str
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Source:
    """All records of one file, by row number from 0.

    Attributes:
        where: the file, for messages.
        labels: the label of each row as the data states it; whole numbers as int, anything else as
            str.
        digests: SHA-256 of each row's content and label.
        read: row numbers → values. Images uint8 or uint16 `(n, C, H, W)`; tables float32 `(n, F)`,
            NaN where missing. A `prepare` callable, if given, is applied to images before they are
            stacked.
        splits: the file's own train, val and test rows where it has them; may lack some of the
            three.
        place: row number → where a person finds that row.
        column: name → each row's text in that column (of a table, or array of an archive).
        skipped: records that could not be read and are left out.
        problems: how many of them by the kind of problem, in words that name no record.
        unknown: by column, values that are not among the plan's categories and count as missing.
        identities: SHA-256 of each whole row, where `digests` is of the columns only that a plan
            asks for; the privacy ledger knows records by it.
    """

    where: str
    labels: Sequence[Label]
    digests: Sequence[bytes]
    read: Callable[[np.ndarray, Prepare | None], Tensor]
    place: Callable[[int], str]
    splits: Mapping[str, np.ndarray] = field(default_factory=dict)
    column: Callable[[str], list[str]] | None = None
    skipped: int = 0
    problems: Mapping[str, int] = field(default_factory=dict)
    unknown: Mapping[str, int] = field(default_factory=dict)
    identities: Sequence[bytes] | None = None

    def __len__(self) -> int:
        return len(self.labels)


class Rows(Protocol):
    """Anything that gives a copy of the rows that are picked from it."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """These rows."""
        ...


def array_reader(values: Rows) -> Callable[[np.ndarray, Prepare | None], Tensor]:
    """`Source.read` over an array; one in memory is made read-only: many nodes share it."""
    if isinstance(values, np.ndarray):
        values.setflags(write=False)

    def read(rows: np.ndarray, prepare: Prepare | None = None) -> Tensor:
        picked = torch.from_numpy(values[rows])  # picking rows copies
        return prepare(picked) if prepare is not None else picked

    return read


def digest(content: bytes, label: Label) -> bytes:
    """SHA-256 of one record: its content and its label."""
    return hashlib.sha256(repr(label).encode() + b"\0" + content).digest()


def row_identity(header: Sequence[str], cells: Sequence[object]) -> bytes:
    """SHA-256 of a table's row with all its columns, whatever their order in the file."""
    named = sorted((name, str(cell).strip()) for name, cell in zip(header, cells, strict=True))
    return hashlib.sha256(repr(named).encode()).digest()


def plain(value: object) -> Label:
    """A label as the data states it: whole numbers (`1`, `1.0`, `"1"`) as int, anything else as
    text.
    """
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else text


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`; did you mean …?` for a name that is not there, or nothing."""
    guess = nearest(name, known)
    return f"; did you mean {guess!r}?" if guess else ""


def unreadable(path: object, error: Exception) -> UserError:
    """The error for a file that is missing, forbidden or broken."""
    if isinstance(error, FileNotFoundError):
        return UserError(
            "no such file", where=str(path), remedy="give the path of the data in data.path"
        )
    if isinstance(error, PermissionError):
        return UserError(
            "no permission to read it", where=str(path), remedy="let the node's user read it"
        )
    what = f"cannot be read ({type(error).__name__}: {str(error)[:120]})"
    return UserError(
        what, where=str(path), remedy="the file is corrupt or of another format; replace it"
    )
