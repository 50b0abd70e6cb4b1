"""What every reader returns: all records of a file, before a plan picks among them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.files.mistakes import nearest
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.tasks.labels import Label


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of a source's records.

        masks.read(7)  # uint8 (H, W), or a Volume (1, D, H, W)
        masks.values[7]  # (0, 1)

    Attributes:
        values: which numbers each mask holds, rising.
        read: row → the mask with the numbers of its file.
    """

    values: Sequence[tuple[int, ...]]
    read: Callable[[int], Any]


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of a source's records.

        boxes.records[7]  # float64 (k, 5): category, left, top, right, bottom

    Attributes:
        categories: the name of each category by its number.
        records: each record's boxes in its image's own pixels.
        sides: height and width of each record's image.
    """

    categories: Mapping[int, str]
    records: Sequence[np.ndarray]
    sides: Sequence[tuple[int, int]]


T = TypeVar("T")
Prepare = Callable[[Any], Batch]
SPLITS = ("train", "val", "test")
# of a content's digest
CONTENT_BYTES = 16


@dataclass(frozen=True, eq=False)
class Source:
    """All records of one file, by row number from 0.

        source = READERS["npz"].read(ReadRequest("/data/xrays.npz"))
        images = source.read(np.array([0, 7]), None)

    Attributes:
        where: the file, for messages.
        labels: the label of each row as the data states it; whole numbers as int, anything else as
            str.
        digests: SHA-256 of each row's content and label.
        read: row numbers → values. Images uint8 or uint16 `(n, C, H, W)`; tables float32 `(n, F)`,
            NaN where missing; texts a list of str. With a `prepare` callable what it makes of them,
            a `Batch`; files are prepared one by one, since they may differ in size.
        splits: the file's own train, val and test rows where it has them; may lack some of the
            three.
        place: row number → where a person finds that row.
        column: name → each row's text in that column (of a table, or array of an archive).
        skipped: records that could not be read and are left out.
        problems: how many of them by the kind of problem, in words that name no record.
        beside: how many files of a folder are no records, by words for people.
        files: the file of each record, where each has its own.
        contents: SHA-256 of each record's content without its label, where equal content is the
            same record twice: images and texts, not rows of a table. Shortened; None: not known.
        unknown: by column, values that are not among the plan's categories and count as missing.
        plural: what the records are called where they are counted, in words for people.
        identities: SHA-256 of each whole row, where `digests` is of the columns only that a plan
            asks for; the privacy ledger knows records by it.
        parts: of each record digests of the images that it is made of, picked by the plan or not,
            where these could be records themselves: the privacy ledger knows it by them, too.
        masks: the mask of each record, where a plan asks for them.
        boxes: the boxes of each record, where a plan asks for them.
        texts: the text of each record; None: they are none.
        answers_at: where in each text its answer begins, characters; None: it holds none.
    """

    where: str
    labels: Sequence[Label]
    digests: Sequence[bytes]
    read: Callable[[np.ndarray, Prepare | None], Any]
    place: Callable[[int], str]
    splits: Mapping[str, np.ndarray] = field(default_factory=dict)
    column: Callable[[str], list[str]] | None = None
    skipped: int = 0
    problems: Mapping[str, int] = field(default_factory=dict)
    unknown: Mapping[str, int] = field(default_factory=dict)
    beside: Mapping[str, int] = field(default_factory=dict)
    files: Sequence[str] = ()
    contents: Sequence[bytes] | None = None
    identities: Sequence[bytes] | None = None
    parts: Sequence[Sequence[bytes]] = ()
    plural: str = "images"
    masks: Masks | None = None
    boxes: Boxes | None = None
    texts: Sequence[str] | None = None
    answers_at: Sequence[int] | None = None
    _derived: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def derived(self, key: Hashable, derive: Callable[[], T]) -> T:
        """Return what `derive` gives, computed once: the nodes of a simulation share a source."""
        if key not in self._derived:
            self._derived[key] = derive()
        return self._derived[key]

    def owners(self, column: str) -> list[str] | None:
        """Return whose each row is, by the column or array of that name.

        None where there is none, or where it is empty everywhere.
        """
        return self.derived(("owners", column), lambda: self._read_owners(column))

    def _read_owners(self, column: str) -> list[str] | None:
        if self.column is None:
            return None
        try:
            texts = self.column(column)
        except UserError:
            return None
        owners = [text.strip() for text in texts]
        return owners if any(owners) else None

    def fingerprint(self) -> str:
        """Return SHA-256 (hex) over all records, in the file's order."""
        return self.derived("fingerprint", self._hash_digests)

    def _hash_digests(self) -> str:
        return hashlib.sha256(b"".join(self.digests)).hexdigest()


class Rows(Protocol):
    """Anything that gives a copy of the rows that are picked from it."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """Return these rows."""
        ...


def array_reader(values: Rows) -> Callable[[np.ndarray, Prepare | None], Any]:
    """Return `Source.read` over an array; one in memory is made read-only: many nodes share it."""
    if isinstance(values, np.ndarray):
        values.setflags(write=False)

    def read(rows: np.ndarray, prepare: Prepare | None = None) -> Tensor | Batch:
        # picking rows copies
        picked = torch.from_numpy(values[rows])
        return picked if prepare is None else prepare(picked)

    return read


# ── a record's identity ───────────────────────────────────────────────────────────────────────────
def digest(content: bytes, label: Label) -> bytes:
    """Return SHA-256 of one record: its content and its label."""
    return hashlib.sha256(repr(label).encode() + b"\0" + content).digest()


def content_digest(content: bytes) -> bytes:
    """Return 16 bytes of SHA-256 of a record's content: equal where it is the same image."""
    return hashlib.sha256(content).digest()[:CONTENT_BYTES]


def table_digests(values: np.ndarray, labels: Sequence[Label]) -> list[bytes]:
    """Return the digest of each row `(n, F)` of a table."""
    return [digest(row.tobytes(), label) for row, label in zip(values, labels, strict=True)]


def row_identity(header: Sequence[str], cells: Sequence[object]) -> bytes:
    """Return SHA-256 of a table's row with all its columns, whatever their order in the file."""
    texts = [str(cell).strip() for cell in cells]
    named = sorted(zip(header, texts, strict=True))
    return hashlib.sha256(repr(named).encode()).digest()


# ── what to say of a file ─────────────────────────────────────────────────────────────────────────
def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return `; did you mean …?` for a name that is not there, or nothing."""
    guess = nearest(name, known)
    return f"; did you mean {guess!r}?" if guess else ""


def unreadable(path: object, error: Exception) -> UserError:
    """Return the error for a file that is missing, forbidden or broken."""
    if isinstance(error, FileNotFoundError):
        what = "no such file"
        remedy = "give the path of the data in data.path"
    elif isinstance(error, PermissionError):
        what = "no permission to read it"
        remedy = "let the node's user read it"
    else:
        what = f"cannot be read ({type(error).__name__}: {str(error)[:120]})"
        if type(error).__name__ == "UnidentifiedImageError":
            # its own words are the address of a buffer
            what = "is no image of a format that is known here"
        remedy = "the file is corrupt or of another format; replace it"
    return UserError(what, where=str(path), remedy=remedy)
