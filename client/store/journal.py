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
from pathlib import Path
from typing import Any

from fedgraft.client.store.chain import (
    GENESIS,
    Entry,
    Head,
    entry_hash,
    entry_text,
    head,
    put_anchor,
)
from fedgraft.common.errors import Code, Refused

SEGMENT = 32 * 1024 * 1024  # bytes
_LONGEST = 8 * 1024 * 1024  # bytes of one line


class Journal:
    """A log in a file and the segments beside it.

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

    def append(self, kind: str, body: dict[str, Any]) -> Entry:
        """Add an entry at the end; durable when this returns.

        Raises:
            Refused: the log was cut or rewritten, or the disk does not take the entry.
        """
        try:
            with self._alone():
                last = self._last()
                now, text = time.time(), entry_text(body)
                found = entry_hash(last.hash, last.count + 1, kind, now, text)
                line = {
                    "number": last.count + 1,
                    "kind": kind,
                    "time": now,
                    "body": json.loads(text),
                }
                self._write(
                    json.dumps(line | {"previous": last.hash, "hash": found}, ensure_ascii=False)
                    + "\n"
                )
                put_anchor(self.anchor, Head(last.count + 1, found), self.mode)
                if self.path.stat().st_size > self.segment:
                    self.path.rename(
                        self.path.with_name(
                            f"{self.path.stem}.{last.count + 1:09d}{self.path.suffix}"
                        )
                    )
        except OSError as error:
            raise Refused(
                Code.STORAGE,
                f"{self.path.name} cannot be written: {error.strerror or type(error).__name__}",
            ) from error
        return Entry(last.count + 1, kind, now, json.loads(text), found)

    def segments(self) -> list[Path]:
        """The files of the log that are here, oldest first."""
        old = sorted(self.path.parent.glob(f"{self.path.stem}.[0-9]*{self.path.suffix}"))
        return [*old, *([self.path] if self.path.exists() else [])]

    def entries(self) -> Iterator[Entry]:
        """Every entry that can be read, oldest first; `verify` says what cannot."""
        for _, entry, _ in self._lines():
            if entry is not None:
                yield entry

    def verify(self, filed: Head | None = None) -> list[str]:
        """Every sign that entries were changed, removed, inserted or cut off; empty: none.

        Args:
            filed: a head that was kept elsewhere; it must be one of this log's.
        """
        found: list[str] = []
        last: Head | None = None
        filed_seen = filed is None or not filed.count
        for place, entry, previous in self._lines():
            if entry is None:
                found.append(f"{place} is not readable")
                continue
            if last is not None and (entry.number, previous) != (last.count + 1, last.hash):
                found.append(f"{place}: entry {entry.number} does not follow entry {last.count}")
            if last is None and entry.number == 1 and previous != GENESIS:
                found.append(f"{place}: entry 1 does not begin the log")
            text = entry_text(entry.body)
            if entry.hash != entry_hash(previous, entry.number, entry.kind, entry.time, text):
                found.append(f"{place}: entry {entry.number} was changed")
            last = Head(entry.number, entry.hash)
            filed_seen = filed_seen or last == filed
        if not filed_seen:
            found.append(f"the filed head {filed} is not in it")
        return found + self._against_anchor(last)

    def head(self) -> Head:
        """Where the log ends; what to file."""
        last = Head(0, GENESIS)
        for entry in self.entries():
            last = Head(entry.number, entry.hash)
        return last

    def _against_anchor(self, last: Head | None) -> list[str]:
        try:
            kept = head(self.anchor.read_text(encoding="ascii")) if self.anchor.exists() else None
        except (OSError, ValueError):
            return [f"its anchor {self.anchor.name} is not readable"]
        if kept is None:
            return [f"its anchor {self.anchor.name} is missing"] if last else []
        if last is None or kept.count > last.count:
            return [
                f"the last {kept.count - (last.count if last else 0)} of {kept.count} entries are"
                " gone"
            ]
        if kept.count == last.count and kept.hash != last.hash:
            return [f"entry {kept.count} is another one than was anchored: the log was rewritten"]
        return []

    def _lines(self) -> Iterator[tuple[str, Entry | None, str]]:
        """Place, entry (None where it is none) and the hash that it names as the one before."""
        for path in self.segments():
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n") and path == self.path:
                        break  # half-written in a crash: never an entry
                    entry, previous = parsed(line)
                    yield f"{path.name}:{number}", entry, previous

    def _last(self) -> Head:
        """The head, with what a crash left behind cut off. Raises `Refused` where it is not the
        anchor's.
        """
        newest = self.segments()[-1:]
        last: Head | None = None
        if newest:
            with newest[0].open("r+b" if newest[0] == self.path else "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _LONGEST))
                lines = file.read().split(b"\n")
                if lines[-1] and newest[0] == self.path:
                    file.truncate(size - len(lines[-1]))
                if len(lines) > 1:
                    entry, _ = parsed(lines[-2])
                    if entry is None:
                        raise Refused(
                            Code.STORAGE, f"the last entry of {self.path.name} is not readable"
                        )
                    last = Head(entry.number, entry.hash)
                elif (
                    len(self.segments()) > 1
                ):  # only a torn line in a new file: the segment before has the head
                    self.path.unlink()
                    return self._last()
        if problems := self._against_anchor(last):
            raise Refused(Code.STORAGE, f"{self.path.name} does not verify: {problems[0]}")
        return last or Head(0, GENESIS)

    def _write(self, line: str) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, self.mode)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(
            self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, self.mode
        )
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def parsed(line: bytes) -> tuple[Entry | None, str]:
    """The entry in a line, None where it is none, and the hash that it names as the one before."""
    try:
        read = json.loads(line)
        entry = Entry(
            read["number"], read["kind"], float(read["time"]), dict(read["body"]), read["hash"]
        )
        entry_text(entry.body)
        return entry, str(read["previous"])
    except (ValueError, KeyError, TypeError):
        return None, ""
