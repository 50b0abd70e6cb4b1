"""The records that a ledger knows, by their SHA-256: which data sets share some."""

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
    """Records by their SHA-256, each once, sorted.

    data = DataSet.of(records)
    ledger.history(data)
    """

    records: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def of(cls, records: Records) -> DataSet:
        """Return all records of the task, training and test: a later split may train on either.

        A table's rows count as the file has them, with all columns: a plan that asks for others
        reads the same patients.
        """
        source = records.source
        digests = source.identities or source.digests
        in_task = []
        for rows in records.splits.values():
            in_task += [digests[row] for row in rows.tolist()]
        return cls.from_digests(in_task)

    @classmethod
    def from_digests(cls, digests: Iterable[bytes]) -> DataSet:
        """Return it from records' digests in any order. Raises `UserError` if there are none."""
        unique = tuple(sorted(set(digests)))
        if not unique:
            what = "a data set without records has no ledger"
            raise UserError(what, remedy="check the node's data")
        return cls(unique)

    @property
    def fingerprint(self) -> str:
        """ "sha256:…" over the sorted digests."""
        return fingerprint_of(self.records)


def fingerprint_of(digests: Sequence[bytes]) -> str:
    """Return "sha256:…" over records' digests, in this order."""
    return f"sha256:{hashlib.sha256(b''.join(digests)).hexdigest()}"


def register(writing: Transaction, data: DataSet) -> int:
    """Return the number of this data set's entry.

    A new one is entered with those that it shares records with.
    """
    for entry in writing.entries:
        if entry.kind == "data" and entry.body["fingerprint"] == data.fingerprint:
            return entry.number
    body = {
        "fingerprint": data.fingerprint,
        "records": len(data.records),
        "overlaps": sorted(sharing(writing.connection, data.records)),
    }
    entry = writing.append("data", body)
    rows = ((digest, entry.number) for digest in data.records)
    writing.connection.executemany("INSERT INTO record VALUES (?, ?)", rows)
    return entry.number


def sharing(connection: sqlite3.Connection, records: Sequence[bytes]) -> set[int]:
    """Return the entries of the data sets that have one of these records."""
    numbers: set[int] = set()
    for start in range(0, len(records), _AT_ONCE):
        some = records[start : start + _AT_ONCE]
        marks = ",".join("?" * len(some))
        query = f"SELECT data FROM record WHERE digest IN ({marks})"
        for (number,) in connection.execute(query, some):
            numbers.add(number)
    return numbers


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
