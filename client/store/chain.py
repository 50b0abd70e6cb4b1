"""An append-only log in one SQLite file: each entry holds the hash of the one before it.

`client/store/chain_entry.py` says what the chain and its anchor are good for.

Durable before `append` returns: a rollback journal (one file to copy, no side files that a copy
would miss) with `synchronous=EXTRA`, and one writer at a time (`BEGIN IMMEDIATE`), whichever
process it is in.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedgraft.client.store.chain_entry import (
    EMPTY,
    GENESIS,
    Entry,
    Head,
    differences,
    entry_hash,
    entry_text,
    head_of,
    next_entry,
    put_anchor,
    read_anchor,
)
from fedgraft.common.errors import Code, Refused

SCHEMA = 1
# seconds to wait for another writer
PATIENCE = 60.0
_ENTRIES = """
CREATE TABLE entry (number INTEGER PRIMARY KEY, kind TEXT, time TEXT, body TEXT, hash TEXT) STRICT
"""


class Transaction:
    """The log while nobody else can write to it.

    What is appended is durable when the `with` block ends.
    """

    def __init__(self, connection: sqlite3.Connection, entries: list[Entry]) -> None:
        self.connection = connection
        self.entries = entries

    @property
    def head(self) -> Head:
        """Where the log ends now."""
        return head_of(self.entries)

    def append(self, kind: str, body: dict[str, Any]) -> Entry:
        """Add an entry at the end."""
        entry = next_entry(self.head, kind, time.time(), body)
        row = (entry.number, kind, repr(entry.time), entry_text(body), entry.hash)
        self.connection.execute("INSERT INTO entry VALUES (?, ?, ?, ?, ?)", row)
        self.entries.append(entry)
        return entry


class Chain:
    """A log in a file, with its anchor in another.

        chain = Chain(folder / "ledger.sqlite")
        with chain.writing() as log:
            log.append("reserve", {"steps": 100})

    Args:
        path: the SQLite file; made, readable by its owner only, with the first `writing`.
        anchor: the second place; default beside it. On another disk it also tells of a restored
            backup.
        tables: SQL of further tables that its user keeps in the same file (and must check itself).
        durable: whether an entry is on the disk when `writing` ends. Without, a killed process
            loses nothing either, and a power cut may lose the log.
    """

    def __init__(
        self,
        path: Path,
        *,
        anchor: Path | None = None,
        tables: str = "",
        durable: bool = True,
    ) -> None:
        self.path = path
        self.durable = durable
        self.anchor = anchor or path.with_name(path.name + ".head")
        self.tables = tables

    @contextlib.contextmanager
    def writing(self) -> Iterator[Transaction]:
        """Give the whole log, checked, to this process alone; an exception leaves it as it was.

        Raises:
            Refused: the log does not verify, was cut or restored, is locked for longer than a
                minute, or the disk does not take it (an entry may be in the log all the same: it
                counts, and nothing was done for it).
        """
        connection = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            entries, problems = self._read(connection)
            if problems:
                raise Refused(Code.BUDGET, f"the privacy ledger does not verify: {problems[0]}")
            if not _version(connection):
                self._create(connection)
            transaction = Transaction(connection, entries)
            before = transaction.head
            yield transaction
            connection.execute("COMMIT")
            if transaction.head != before:
                self._put_anchor(transaction.head)
        except (sqlite3.Error, OSError) as error:
            what = f"the privacy ledger cannot be written: {type(error).__name__}"
            raise Refused(Code.BUDGET, what) from error
        finally:
            # rolls back what was not committed
            if connection is not None:
                connection.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[tuple[sqlite3.Connection, list[Entry], list[str]]]:
        """Give a connection, the entries, and what does not verify.

        No entry is changed and no file is made.
        """
        address = ":memory:"
        if self.path.exists():
            # rw: what a crash left half-written must be rolled back before it can be read
            address = f"{self.path.absolute().as_uri()}?mode=rw"
        try:
            opened = sqlite3.connect(address, uri=True, timeout=PATIENCE, isolation_level=None)
            with contextlib.closing(opened) as connection:
                connection.execute("BEGIN")
                entries, problems = self._read(connection)
                if address == ":memory:":
                    self._make_tables(connection)
                yield connection, entries, problems
        except sqlite3.Error as error:
            what = f"the privacy ledger {self.path.name} cannot be read: {error}"
            raise Refused(Code.BUDGET, what) from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        if not self.durable:
            connection.execute("PRAGMA synchronous = OFF")
            return connection
        connection.execute("PRAGMA synchronous = EXTRA")
        # macOS: through the disk's own cache
        connection.execute("PRAGMA fullfsync = ON")
        return connection

    def _create(self, connection: sqlite3.Connection) -> None:
        # before the log: a log without an anchor has lost it
        if not self.anchor.exists():
            self._put_anchor(EMPTY)
        self._make_tables(connection)
        connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def _make_tables(self, connection: sqlite3.Connection) -> None:
        connection.execute(_ENTRIES)
        for statement in self.tables.split(";"):
            if statement.strip():
                connection.execute(statement)

    # ── checking ──────────────────────────────────────────────────────────────────────────────────
    def _read(self, connection: sqlite3.Connection) -> tuple[list[Entry], list[str]]:
        """Return all entries as they stand, and every way in which they are not one whole chain."""
        version = _version(connection)
        # a new file, or one that lost all it had
        if not version:
            problems = self._against_anchor([]) if self.anchor.exists() else []
            return [], problems
        if version != SCHEMA:
            return [], [f"its format is {version}, this program writes {SCHEMA}"]
        entries, problems = _read_entries(connection)
        return entries, problems + self._against_anchor(entries)

    def _against_anchor(self, entries: list[Entry]) -> list[str]:
        if not self.anchor.exists():
            return [f"its anchor {self.anchor.name} is missing"]
        try:
            return differences(entries, read_anchor(self.anchor))
        except (OSError, ValueError):
            return [f"its anchor {self.anchor.name} is not readable"]

    def _put_anchor(self, head: Head) -> None:
        """Write the anchor, unless another process has put a later head there.

        An anchor may lag by what was being written in a crash, never lead.
        """
        if read_anchor(self.anchor).count <= head.count:
            put_anchor(self.anchor, head, durable=self.durable)


def _read_entries(connection: sqlite3.Connection) -> tuple[list[Entry], list[str]]:
    entries: list[Entry] = []
    problems: list[str] = []
    previous = GENESIS
    rows = connection.execute("SELECT * FROM entry ORDER BY number")
    for at, (number, kind, when, text, own_hash) in enumerate(rows, start=1):
        if number != at and not problems:
            problems.append(f"entry {at} is missing")
        try:
            body = json.loads(text)
            seconds = float(when)
        except (ValueError, TypeError):
            problems.append(f"entry {number} is not readable")
            continue
        if own_hash != entry_hash(previous, number, kind, seconds, text):
            problems.append(f"entry {number} was changed, or one before it was removed or moved")
        entries.append(Entry(number, kind, seconds, body, own_hash))
        previous = own_hash
    return entries, problems


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
