"""An append-only log in one SQLite file: each entry holds the hash of the one before it.

Changing, removing, inserting or reordering an entry breaks the chain. Cutting off its tail does
not, so the number of entries and the last hash are also kept in a second file, the anchor: a log
that is shorter than its anchor, or differs from it, was cut or restored from an older copy. Nothing
secret is in the hashes: who can write both files can write another history; only a head kept
elsewhere (a filed statement) tells then.

Durable before `append` returns: a rollback journal (one file to copy, no side files that a copy
would miss) with `synchronous=EXTRA`, and one writer at a time (`BEGIN IMMEDIATE`), whichever
process it is in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.common.errors import Code, Refused

SCHEMA = 1
PATIENCE = 60.0  # seconds to wait for another writer
GENESIS = "0" * 64


@dataclass(frozen=True)
class Entry:
    """One line of the log.

    Attributes:
        number: from 1.
        kind: what happened.
        time: Unix time, seconds.
        body: the particulars, JSON values only.
        hash: SHA-256 (hex) over all of these and the hash of the entry before.
    """

    number: int
    kind: str
    time: float
    body: dict[str, Any]
    hash: str


@dataclass(frozen=True)
class Head:
    """How many entries there are, and the last one's hash: what a person files to prove a log whole
    later.
    """

    count: int
    hash: str

    def __str__(self) -> str:
        return f"{self.count}:{self.hash}"


class Transaction:
    """The log while nobody else can write to it; what is appended is durable when the `with` block
    ends.
    """

    def __init__(self, connection: sqlite3.Connection, entries: list[Entry]) -> None:
        self.connection = connection
        self.entries = entries

    @property
    def head(self) -> Head:
        """Where the log ends now."""
        return Head(len(self.entries), self.entries[-1].hash if self.entries else GENESIS)

    def append(self, kind: str, body: dict[str, Any]) -> Entry:
        """Add an entry at the end."""
        now, number, text = time.time(), self.head.count + 1, entry_text(body)
        entry = Entry(
            number, kind, now, json.loads(text), entry_hash(self.head.hash, number, kind, now, text)
        )
        self.connection.execute(
            "INSERT INTO entry VALUES (?, ?, ?, ?, ?)", (number, kind, repr(now), text, entry.hash)
        )
        self.entries.append(entry)
        return entry


class Chain:
    """A log in a file, with its anchor in another.

    Args:
        path: the SQLite file; made, readable by its owner only, with the first `writing`.
        anchor: the second place; default beside it. On another disk it also tells of a restored
            backup.
        tables: SQL of further tables that its user keeps in the same file (and must check itself).
    """

    def __init__(self, path: Path, *, anchor: Path | None = None, tables: str = "") -> None:
        self.path = path
        self.anchor = anchor or path.with_name(path.name + ".head")
        self.tables = tables

    @contextlib.contextmanager
    def writing(self) -> Iterator[Transaction]:
        """The whole log, checked, for this process alone; an exception leaves it as it was.

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
            raise Refused(
                Code.BUDGET, f"the privacy ledger cannot be written: {type(error).__name__}"
            ) from error
        finally:
            if connection is not None:
                connection.close()  # rolls back what was not committed

    @contextlib.contextmanager
    def reading(self) -> Iterator[tuple[sqlite3.Connection, list[Entry], list[str]]]:
        """A connection, the entries, and what does not verify; no entry is changed and no file is
        made.
        """
        # rw: what a crash left half-written must be rolled back before it can be read
        place = self.path.absolute().as_uri() + "?mode=rw" if self.path.exists() else ":memory:"
        try:
            with contextlib.closing(
                sqlite3.connect(place, uri=True, timeout=PATIENCE, isolation_level=None)
            ) as connection:
                connection.execute("BEGIN")
                entries, problems = self._read(connection)
                if place == ":memory:":
                    self._tables(connection)
                yield connection, entries, problems
        except sqlite3.Error as error:
            raise Refused(
                Code.BUDGET, f"the privacy ledger {self.path.name} cannot be read: {error}"
            ) from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute("PRAGMA fullfsync = ON")  # macOS: through the disk's own cache
        return connection

    def _create(self, connection: sqlite3.Connection) -> None:
        if not self.anchor.exists():  # before the log: a log without an anchor has lost it
            self._put_anchor(Head(0, GENESIS))
        self._tables(connection)
        connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def _tables(self, connection: sqlite3.Connection) -> None:
        entry = (
            "CREATE TABLE entry (number INTEGER PRIMARY KEY, kind TEXT, time TEXT, body TEXT, hash"
            " TEXT) STRICT"
        )
        for statement in (entry, *filter(str.strip, self.tables.split(";"))):
            connection.execute(statement)

    def _read(self, connection: sqlite3.Connection) -> tuple[list[Entry], list[str]]:
        """All entries as they stand, and every way in which they are not one whole chain."""
        version = _version(connection)
        if not version:  # a new file, or one that lost all it had
            return [], self._against_anchor([]) if self.anchor.exists() else []
        if version != SCHEMA:
            return [], [f"its format is {version}, this program writes {SCHEMA}"]
        entries: list[Entry] = []
        problems: list[str] = []
        previous = GENESIS
        for at, row in enumerate(
            connection.execute("SELECT * FROM entry ORDER BY number"), start=1
        ):
            number, kind, when, text, found = row
            if number != at and not problems:
                problems.append(f"entry {at} is missing")
            try:
                body, seconds = json.loads(text), float(when)
            except (ValueError, TypeError):
                problems.append(f"entry {number} is not readable")
                continue
            if found != entry_hash(previous, number, kind, seconds, text):
                problems.append(
                    f"entry {number} was changed, or one before it was removed or moved"
                )
            entries.append(Entry(number, kind, seconds, body, found))
            previous = found
        return entries, problems + self._against_anchor(entries)

    def _against_anchor(self, entries: list[Entry]) -> list[str]:
        if not self.anchor.exists():
            return [f"its anchor {self.anchor.name} is missing"]
        try:
            return differs(entries, self._anchored())
        except (OSError, ValueError):
            return [f"its anchor {self.anchor.name} is not readable"]

    def _anchored(self) -> Head:
        """The head that the anchor holds. An anchor may lag by what was being written in a crash,
        never lead.
        """
        if not self.anchor.exists():
            return Head(0, GENESIS)
        return head(self.anchor.read_text(encoding="ascii"))

    def _put_anchor(self, head: Head) -> None:
        """Written beside its place, flushed and renamed. Not when another process has put a later
        one there.
        """
        if self.anchor.exists() and self._anchored().count > head.count:
            return
        put_anchor(self.anchor, head)


def put_anchor(anchor: Path, head: Head, mode: int = 0o600) -> None:
    """Keep a head in a file of its own, durably: written beside its place, flushed and renamed.
    Raises OSError.
    """
    anchor.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=anchor.parent, prefix=anchor.name)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{head}\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, anchor)
        folder = os.open(anchor.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def head(text: str) -> Head:
    """A head as it is printed, `count:hash`. Raises ValueError."""
    count, _, hash_ = text.strip().partition(":")
    if len(hash_) != 64 or not count.isdigit():
        raise ValueError(f"{text!r} is not a head: count:sha256")
    return Head(int(count), hash_)


def differs(entries: list[Entry], kept: Head) -> list[str]:
    """What is wrong with the log if `kept`, from an anchor or a filed statement, was once its
    head.
    """
    if kept.count > len(entries):
        lost = kept.count - len(entries)
        return [
            f"the last {lost} of {kept.count} entries are gone (cut off, or restored from an older"
            " copy)"
        ]
    if kept.count and entries[kept.count - 1].hash != kept.hash:
        return [f"entry {kept.count} is another one than was anchored: the log was rewritten"]
    return []


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def entry_text(body: dict[str, Any]) -> str:
    """The one way in which an entry's particulars are written, so that they have one hash."""
    return json.dumps(
        body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def entry_hash(previous: str, number: int, kind: str, when: float, text: str) -> str:
    """SHA-256 (hex) over an entry and the hash of the one before it."""
    line = json.dumps([previous, number, kind, repr(when), text], ensure_ascii=True)
    return hashlib.sha256(line.encode()).hexdigest()
