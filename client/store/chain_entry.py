"""Entries of an append-only log: each holds the hash of the one before it; the last is the head.

Changing, removing, inserting or reordering an entry breaks the chain. Cutting off its tail does
not, so the number of entries and the last hash are also kept in a second file, the anchor: a log
that is shorter than its anchor, or differs from it, was cut or restored from an older copy. Nothing
secret is in the hashes: who can write both files can write another history; only a head kept
elsewhere (a filed statement) tells then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.common.files.whole_files import write_whole

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
    """How many entries there are, and the last one's hash.

    It is what a person files to prove a log whole later.
    """

    count: int
    hash: str

    def __str__(self) -> str:
        return f"{self.count}:{self.hash}"


EMPTY = Head(0, GENESIS)


def head_of(entries: Sequence[Entry]) -> Head:
    """Return where a whole log of these entries ends."""
    if not entries:
        return EMPTY
    return Head(len(entries), entries[-1].hash)


def parse_head(text: str) -> Head:
    """Return a head as it is printed, `count:hash`. Raises ValueError."""
    count, _, last = text.strip().partition(":")
    if len(last) != 64 or not count.isdigit():
        raise ValueError(f"{text!r} is not a head: count:sha256")
    return Head(int(count), last)


def differences(entries: Sequence[Entry], earlier: Head) -> list[str]:
    """Return what is wrong with a log if `earlier`, from an anchor or a filed statement, was once
    its head.
    """
    count = earlier.count
    if count > len(entries):
        lost = f"the last {count - len(entries)} of {count} entries are gone"
        return [f"{lost} (cut off, or restored from an older copy)"]
    if count and entries[count - 1].hash != earlier.hash:
        return [f"entry {count} is another one than was anchored: the log was rewritten"]
    return []


# ── hashes ────────────────────────────────────────────────────────────────────────────────────────
def entry_text(body: dict[str, Any]) -> str:
    """Return the one way in which an entry's particulars are written; so they have one hash."""
    return json.dumps(
        body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def entry_hash(previous: str, number: int, kind: str, time: float, text: str) -> str:
    """Return SHA-256 (hex) over an entry and the hash of the one before it."""
    line = json.dumps([previous, number, kind, repr(time), text], ensure_ascii=True)
    return hashlib.sha256(line.encode()).hexdigest()


def next_entry(head: Head, kind: str, time: float, body: dict[str, Any]) -> Entry:
    """Return the entry that follows a head."""
    number = head.count + 1
    text = entry_text(body)
    own_hash = entry_hash(head.hash, number, kind, time, text)
    return Entry(number, kind, time, json.loads(text), own_hash)


# ── the anchor ────────────────────────────────────────────────────────────────────────────────────
def read_anchor(anchor: Path) -> Head:
    """Return the head that an anchor holds, `EMPTY` where it is not there.

    Raises OSError or ValueError where it cannot be read.
    """
    if not anchor.exists():
        return EMPTY
    return parse_head(anchor.read_text(encoding="ascii"))


def put_anchor(anchor: Path, head: Head, mode: int = 0o600, *, durable: bool = True) -> None:
    """Keep a head in a file of its own. Raises OSError."""
    anchor.parent.mkdir(parents=True, exist_ok=True)
    write_whole(anchor, f"{head}\n", mode=mode, durable=durable)
