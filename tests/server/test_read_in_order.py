"""Replies that arrive in any order, read in one."""

from __future__ import annotations

from typing import Any, cast

from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common.wire.layout import BadUpdate
from fedgraft.server.read_in_order import InOrder

NAMES = [f"node-{number}" for number in range(6)]


@given(st.permutations(NAMES), st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)))
def test_replies_are_read_by_name_whoever_comes_first(
    arrivals: list[str], gone: set[str], silent: set[str]
) -> None:
    """A sum with other last bits whenever another node is faster; a reply that is read twice, or
    never, since a node before it refused or did not answer.
    """
    read: list[str] = []
    reader = InOrder(NAMES, lambda name, content: read.append(name))
    for name in arrivals:
        if name in gone:
            reader.pass_over(name)
        elif name not in silent:
            reader.read(name, RecordDict())
    reader.close()
    assert read == [name for name in NAMES if name not in gone | silent]


def test_a_reply_is_not_held_once_those_before_it_have_come() -> None:
    """Memory that grows with the number of nodes."""
    read: list[str] = []
    reader = InOrder(["a", "b", "c"], lambda name, content: read.append(name))
    reader.read("b", RecordDict())
    assert read == []
    reader.read("a", RecordDict())
    assert read == ["a", "b"]
    reader.read("c", RecordDict())
    assert read == ["a", "b", "c"]


def test_a_bad_reply_is_told_under_its_own_name() -> None:
    """An honest node that is called bad, because its reply was read together with a bad one."""

    def refuse_first(name: str, content: Any) -> None:
        if name == "a":
            raise BadUpdate("no sums")

    reader = InOrder(["a", "b"], refuse_first)
    reader.read("b", cast(RecordDict, RecordDict()))
    reader.read("a", RecordDict())
    reader.close()
    assert reader.refused == {"a": "no sums"}
