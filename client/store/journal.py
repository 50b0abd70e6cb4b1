"""An append-only log in JSON lines, one entry a line, each holding the hash of the one before it.

The same chain and the same anchor as the ledger's (`client/store/chain.py`), in a file that a
person can read with any tool. An entry is one `write`, flushed to disk before `append` returns; one
process at a time, by a lock file. What a crash left half-written at the end was never an entry: the
next `append` cuts it off. A file that has grown past `segment` bytes is set aside under its last
entry's number and the chain goes on in a new one; segments that were moved to an archive leave a
log that begins later and still verifies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.client.store.chain_entry import (
    EMPTY,
    GENESIS,
    Entry,
    Head,
    entry_hash,
    entry_text,
    next_entry,
    put_anchor,
    read_anchor,
)
from fedgraft.common.errors import Code, Refused

# bytes of a file, and of one line
SEGMENT = 32 * 1024 * 1024
_LONGEST = 8 * 1024 * 1024


@dataclass(frozen=True)
class JournalLine:
    """One line of a journal.

    Attributes:
        place: file and line number, for messages.
        entry: None where the line is none.
        previous: the hash that it names as that of the entry before.
    """

    place: str
    entry: Entry | None
    previous: str


class Journal:
    """A log in a file and the segments beside it.

        journal = Journal(node.store / "audit.jsonl")
        journal.append("in", {"bytes": 120})
        problems = journal.verify()

    Args:
        path: such as audit.jsonl; segments are audit.000000123.jsonl, the anchor is
            audit.jsonl.head.
        mode: permissions of a new file.
    """

    def __init__(self, path: Path, *, mode: int = 0o600, segment: int = SEGMENT) -> None:
        self.path = path
        self.anchor = path.with_name(path.name + ".head")
        self.mode = mode
        self.segment = segment

    # ── writing ───────────────────────────────────────────────────────────────────────────────────
    def append(self, kind: str, body: dict[str, Any]) -> Entry:
        """Add an entry at the end; durable when this returns.

        Raises:
            Refused: the log was cut or rewritten, or the disk does not take the entry.
        """
        try:
            with self._alone():
                last = self._last()
                entry = next_entry(last, kind, time.time(), body)
                self._write(_line_of(entry, last.hash))
                put_anchor(self.anchor, Head(entry.number, entry.hash), self.mode)
                if self.path.stat().st_size > self.segment:
                    name = f"{self.path.stem}.{entry.number:09d}{self.path.suffix}"
                    self.path.rename(self.path.with_name(name))
        except OSError as error:
            why = error.strerror or type(error).__name__
            what = f"{self.path.name} cannot be written: {why}"
            raise Refused(Code.STORAGE, what) from error
        return entry

    def _write(self, line: str) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, self.mode)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(self.path.name + ".lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, self.mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _last(self) -> Head:
        """Return the head, with what a crash left behind cut off.

        Raises `Refused` where it is not the anchor's.
        """
        last = self._end_of_newest()
        problems = self._against_anchor(last)
        if problems:
            what = f"{self.path.name} does not verify: {problems[0]}"
            raise Refused(Code.STORAGE, what)
        return last or EMPTY

    def _end_of_newest(self) -> Head | None:
        """Return the last entry's head, of the newest file that has one; None: there is none."""
        for path in reversed(self.segments()):
            lines = self._last_lines(path)
            if lines:
                return self._head_of_line(lines[-1])
            if path == self.path and len(self.segments()) > 1:
                # only a torn line in a new file: the segment before has the head
                path.unlink()
                continue
            return None
        return None

    def _last_lines(self, path: Path) -> list[bytes]:
        """Return whole lines from a file's end; a torn one of the newest file is cut off."""
        newest = path == self.path
        with path.open("r+b" if newest else "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LONGEST))
            *lines, torn = file.read().split(b"\n")
            if torn and newest:
                file.truncate(size - len(torn))
        return lines

    def _head_of_line(self, line: bytes) -> Head:
        entry, _ = parse_line(line)
        if entry is None:
            what = f"the last entry of {self.path.name} is not readable"
            raise Refused(Code.STORAGE, what)
        return Head(entry.number, entry.hash)

    # ── reading ───────────────────────────────────────────────────────────────────────────────────
    def segments(self) -> list[Path]:
        """Return the files of the log that are here, oldest first."""
        name = f"{self.path.stem}.[0-9]*{self.path.suffix}"
        segments = sorted(self.path.parent.glob(name))
        if self.path.exists():
            segments.append(self.path)
        return segments

    def entries(self) -> Iterator[Entry]:
        """Give every entry that can be read, oldest first; `verify` says what cannot."""
        for line in self._lines():
            if line.entry is not None:
                yield line.entry

    def head(self) -> Head:
        """Return where the log ends; what to file."""
        last = EMPTY
        for entry in self.entries():
            last = Head(entry.number, entry.hash)
        return last

    def _lines(self) -> Iterator[JournalLine]:
        for path in self.segments():
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    # half-written in a crash: never an entry
                    if not line.endswith(b"\n") and path == self.path:
                        break
                    entry, previous = parse_line(line)
                    yield JournalLine(f"{path.name}:{number}", entry, previous)

    # ── checking ──────────────────────────────────────────────────────────────────────────────────
    def verify(self, filed: Head | None = None) -> list[str]:
        """Return every sign that entries were changed, removed, inserted or cut off.

        Args:
            filed: a head that was kept elsewhere; it must be one of this log's.
        """
        problems: list[str] = []
        last: Head | None = None
        is_ours = filed is None or filed.count == 0
        for line in self._lines():
            if line.entry is None:
                problems.append(f"{line.place} is not readable")
                continue
            problems += _line_problems(line, line.entry, last)
            last = Head(line.entry.number, line.entry.hash)
            is_ours = is_ours or last == filed
        if not is_ours:
            problems.append(f"the filed head {filed} is not in it")
        return problems + self._against_anchor(last)

    def _against_anchor(self, last: Head | None) -> list[str]:
        name = self.anchor.name
        if not self.anchor.exists():
            return [f"its anchor {name} is missing"] if last else []
        try:
            anchored = read_anchor(self.anchor)
        except (OSError, ValueError):
            return [f"its anchor {name} is not readable"]
        count = last.count if last else 0
        if last is None or anchored.count > count:
            return [f"the last {anchored.count - count} of {anchored.count} entries are gone"]
        if anchored.count == count and anchored.hash != last.hash:
            return [f"entry {count} is another one than was anchored: the log was rewritten"]
        return []


def _line_of(entry: Entry, previous: str) -> str:
    line = {
        "number": entry.number,
        "kind": entry.kind,
        "time": entry.time,
        "body": entry.body,
        "previous": previous,
        "hash": entry.hash,
    }
    return json.dumps(line, ensure_ascii=False) + "\n"


def parse_line(line: bytes) -> tuple[Entry | None, str]:
    """Return the entry in a line, and the hash that it names as the one before.

    The entry is None where the line is none.
    """
    try:
        fields = json.loads(line)
        seconds = float(fields["time"])
        body = dict(fields["body"])
        entry = Entry(fields["number"], fields["kind"], seconds, body, fields["hash"])
        entry_text(entry.body)
        return entry, str(fields["previous"])
    except (ValueError, KeyError, TypeError):
        return None, ""


def _line_problems(line: JournalLine, entry: Entry, last: Head | None) -> list[str]:
    """Return what is wrong with one entry that follows the head `last`; None: it is the first."""
    problems = []
    what = f"{line.place}: entry {entry.number}"
    if last is None:
        if entry.number == 1 and line.previous != GENESIS:
            problems.append(f"{what} does not begin the log")
    elif (entry.number, line.previous) != (last.count + 1, last.hash):
        problems.append(f"{what} does not follow entry {last.count}")
    text = entry_text(entry.body)
    if entry.hash != entry_hash(line.previous, entry.number, entry.kind, entry.time, text):
        problems.append(f"{what} was changed")
    return problems
