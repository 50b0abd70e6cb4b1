"""The records and patients that a ledger knows, by their SHA-256: which data sets share some."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedgraft.client.store.chain import Transaction
from fedgraft.client.store.chain_entry import Entry
from fedgraft.common.errors import UserError

if TYPE_CHECKING:
    from fedgraft.client.data.data_set import Records

TABLES = """
CREATE TABLE record (
    digest BLOB NOT NULL, data INTEGER NOT NULL, PRIMARY KEY (digest, data)
) STRICT, WITHOUT ROWID;
CREATE INDEX record_of ON record (data)
"""
# digests in one question: SQLite takes a thousand, in every build
_AT_ONCE = 500


@dataclass(frozen=True)
class DataSet:
    """Records and patients by their SHA-256, each once, sorted.

    data = DataSet.of(records)
    ledger.history(data, unit="patient")

    Attributes:
        patients: whose the records are; none where the data does not say.
    """

    records: tuple[bytes, ...] = field(repr=False)
    patients: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, records: Records) -> DataSet:
        """Return all records of this node's file, and whose they are.

        A plan picks rows by their labels and columns; a ledger of what it picks would begin anew
        with each plan. A table's rows count with all their columns, and a record of several
        images with each of them.
        """
        source = records.source
        digests = source.identities or source.digests
        own = records.rows.tolist()
        patients: list[bytes] = []
        if records.owners is not None:
            patients = [patient_digest(records.owners[row]) for row in own if records.owners[row]]
        known = [digests[row] for row in own]
        if source.parts:
            for row in own:
                known += source.parts[row]
        return cls.from_digests(known, patients)

    @classmethod
    def from_digests(cls, digests: Iterable[bytes], patients: Iterable[bytes] = ()) -> DataSet:
        """Return it from digests in any order. Raises `UserError` if there are no records."""
        unique = tuple(sorted(set(digests)))
        if not unique:
            what = "a data set without records has no ledger"
            raise UserError(what, remedy="check the node's data")
        return cls(unique, tuple(sorted(set(patients))))

    @property
    def digests(self) -> tuple[bytes, ...]:
        """All of them, sorted."""
        return tuple(sorted(self.records + self.patients))

    @property
    def fingerprint(self) -> str:
        """ "sha256:…" over the sorted digests."""
        return fingerprint_of(self.digests)


def patient_digest(patient: str) -> bytes:
    """Return SHA-256 of whose a record is; no record has it."""
    return hashlib.sha256(f"patient\0{patient}".encode()).digest()


def fingerprint_of(digests: Sequence[bytes]) -> str:
    """Return "sha256:…" over digests, in this order."""
    return f"sha256:{hashlib.sha256(b''.join(digests)).hexdigest()}"


@dataclass(frozen=True)
class Related:
    """The entries of the data sets that have records of a data set, or records of its patients."""

    same_records: frozenset[int]
    same_patients: frozenset[int]


def register(writing: Transaction, data: DataSet) -> int:
    """Return the number of this data set's entry.

    A new one is entered with those that it shares records or patients with.
    """
    for entry in writing.entries:
        if entry.kind == "data" and entry.body["fingerprint"] == data.fingerprint:
            return entry.number
    related = find_related(writing.connection, data)
    body = {
        "fingerprint": data.fingerprint,
        "records": len(data.records),
        "overlaps": sorted(related.same_records),
        "patients": sorted(related.same_patients),
    }
    entry = writing.append("data", body)
    rows = ((digest, entry.number) for digest in data.digests)
    writing.connection.executemany("INSERT INTO record VALUES (?, ?)", rows)
    return entry.number


def find_related(connection: sqlite3.Connection, data: DataSet) -> Related:
    """Return the entries of the data sets that share records or patients with this one."""
    return Related(_having(connection, data.records), _having(connection, data.patients))


def _having(connection: sqlite3.Connection, digests: Sequence[bytes]) -> frozenset[int]:
    """Return the entries of the data sets that have one of these digests."""
    numbers: set[int] = set()
    for start in range(0, len(digests), _AT_ONCE):
        some = digests[start : start + _AT_ONCE]
        marks = ",".join("?" * len(some))
        query = f"SELECT data FROM record WHERE digest IN ({marks})"
        for (number,) in connection.execute(query, some):
            numbers.add(number)
    return frozenset(numbers)


def find_changed_records(connection: sqlite3.Connection, entries: Sequence[Entry]) -> list[str]:
    """Return what says that the records kept for a data set are not those of its fingerprint."""
    if not entries:
        return []
    problems = []
    data_sets = [entry for entry in entries if entry.kind == "data"]
    numbers = {entry.number for entry in data_sets}
    for (number,) in connection.execute("SELECT DISTINCT data FROM record ORDER BY data"):
        if number not in numbers:
            problems.append(f"records of a data set {number} that has no entry")
    query = "SELECT digest FROM record WHERE data = ? ORDER BY digest"
    for entry in data_sets:
        digests = [digest for (digest,) in connection.execute(query, (entry.number,))]
        if fingerprint_of(digests) != entry.body["fingerprint"]:
            which = f"the data set in entry {entry.number}"
            problems.append(f"records of {which} were changed or removed")
    return problems
