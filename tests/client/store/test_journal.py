"""A log of hash-chained lines: every way of changing it afterwards must be found."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fedgraft.client.store.chain_entry import parse_head
from fedgraft.client.store.journal import Journal
from fedgraft.common.errors import Refused


def filled(folder: Path, entries: int = 6, **more) -> Journal:
    journal = Journal(folder / "audit.jsonl", **more)
    for number in range(entries):
        journal.append("in", {"round": number, "text": "ε = 1\n"})
    return journal


def test_what_was_appended_is_read_and_verifies(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    assert [entry.body["round"] for entry in journal.entries()] == list(range(6))
    assert journal.verify() == []
    assert journal.verify(journal.head()) == []
    assert len(journal.path.read_text().splitlines()) == 6, "one line each, whatever the text in it"
    assert journal.path.stat().st_mode & 0o777 == 0o600


@given(line=some.integers(0, 5), at=some.integers(0, 10_000), flip=some.integers(1, 127))
def test_any_changed_byte_is_found(tmp_path_factory, line: int, at: int, flip: int) -> None:
    journal = filled(tmp_path_factory.mktemp("journal"))
    lines = journal.path.read_bytes().splitlines(keepends=True)
    changed = bytearray(lines[line])
    changed[at % len(changed)] ^= flip
    before, after = _meaning(lines[line]), _meaning(bytes(changed))
    lines[line] = bytes(changed)
    journal.path.write_bytes(b"".join(lines))
    assert before == after or journal.verify()


def _meaning(line: bytes):
    try:
        return json.loads(line)
    except ValueError:
        return line


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (lambda lines: lines[:2] + lines[3:], "does not follow"),
        (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], "does not follow"),
        (lambda lines: lines[:4], "the last 2 of 6 entries are gone"),
        (lambda lines: [], "the last 6 of 6 entries are gone"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "does not follow"),
    ],
)
def test_removed_moved_or_cut_off(tmp_path: Path, tamper, says: str) -> None:
    journal = filled(tmp_path)
    journal.path.write_bytes(b"".join(tamper(journal.path.read_bytes().splitlines(keepends=True))))
    assert any(says in problem for problem in journal.verify())


def test_nothing_is_appended_to_a_log_that_was_cut(tmp_path: Path) -> None:
    """Else the next message would hide the gap."""
    journal = filled(tmp_path)
    journal.path.write_bytes(b"".join(journal.path.read_bytes().splitlines(keepends=True)[:3]))
    with pytest.raises(Refused, match="does not verify"):
        journal.append("in", {})


def test_a_line_half_written_in_a_crash_was_never_an_entry(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    with journal.path.open("ab") as file:
        file.write(b'{"number": 7, "kind": "i')
    assert journal.verify() == []
    assert journal.append("in", {"round": 6}).number == 7
    assert [entry.number for entry in journal.entries()] == [1, 2, 3, 4, 5, 6, 7]
    assert journal.verify() == []


def test_segments_go_on_with_the_chain_and_may_be_archived(tmp_path: Path) -> None:
    journal = filled(tmp_path, 20, segment=1500)
    assert len(journal.segments()) > 2
    assert [entry.number for entry in journal.entries()] == list(range(1, 21))
    assert journal.verify() == []
    journal.segments()[0].unlink()
    assert journal.verify() == [], "it begins later, and what is there is whole"
    journal.segments()[1].unlink()
    assert journal.verify()


def test_a_filed_head_tells_a_rewritten_log(tmp_path: Path) -> None:
    """Who can write both files can write another history; the head that was filed is not in it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    filed = filled(tmp_path / "a").head()
    other = filled(tmp_path / "b")
    assert other.verify() == []
    assert "not in it" in other.verify(filed)[0]
    assert parse_head(str(filed)) == filed


def _write(path: Path, times: int) -> None:
    for number in range(times):
        Journal(path).append("in", {"round": number})


def test_two_processes_at_once(tmp_path: Path) -> None:
    start = multiprocessing.get_context("spawn")
    writers = [start.Process(target=_write, args=(tmp_path / "audit.jsonl", 40)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    journal = Journal(tmp_path / "audit.jsonl")
    assert journal.verify() == []
    assert journal.head().count == 80
