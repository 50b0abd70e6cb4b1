"""Pulling replies from a SuperLink that is not always well."""

from __future__ import annotations

from typing import Any, cast

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.common.errors import Code
from fedgraft.server.exchange import Replies, exchange


@pytest.fixture(autouse=True)
def server_app(monkeypatch):
    """A message asks for the identity of the process that makes it, and the loop waits between two
    pulls.
    """
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.setattr("fedgraft.server.exchange.POLL", 0.0)


class Moody:
    """A grid whose pulls answer with these statuses first, and then with one reply."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = list(statuses)
        self.pulls = 0

    def push_messages(self, messages: Any) -> list[str]:
        self._sent = list(messages)
        self._sent[0].metadata.__dict__["_message_id"] = "m"
        return ["m"]

    def pull_messages(self, ids: Any) -> list[Message]:
        self.pulls += 1
        if self._statuses:
            answer = httpx.Response(
                self._statuses.pop(0), request=httpx.Request("POST", "https://superlink")
            )
            answer.raise_for_status()
        return [Message(RecordDict(), reply_to=self._sent[0])]


def test_a_superlink_that_fails_for_a_moment_is_asked_again():
    """A federation that ends because the SuperLink's database was locked for a second."""
    grid = Moody(500, 503)
    replies = exchange(cast(Grid, grid), "query.x", RecordDict(), {"a": 2}, group="0", timeout=30)
    assert list(replies.contents) == ["a"]
    assert grid.pulls == 3


class Selective:
    """A grid that answers, as a simulation's does, with the ids of the messages it stored only."""

    def __init__(self, lost: int) -> None:
        self._lost = lost

    def push_messages(self, messages: Any) -> list[str]:
        self._sent = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"to {message.metadata.dst_node_id}"
            if message.metadata.dst_node_id != self._lost:
                self._sent.append(message)
        return [message.metadata.message_id for message in self._sent]

    def pull_messages(self, ids: Any) -> list[Message]:
        return [Message(RecordDict(), reply_to=message) for message in self._sent]


@pytest.mark.parametrize("lost", [2, 3, 4])
def test_a_message_that_was_not_stored_is_its_nodes_alone(lost: int):
    """A round that ends in a word about zip, or one node's reply taken for another's."""
    nodes = {"a": 2, "b": 3, "c": 4}
    grid = cast(Grid, Selective(lost))
    replies = exchange(grid, "query.x", RecordDict(), nodes, group="0", timeout=30)
    assert list(replies.refused) == [name for name, number in nodes.items() if number == lost]
    assert list(replies.contents) == [name for name, number in nodes.items() if number != lost]
    assert [name for name, size in replies.down.items() if size == 0] == list(replies.refused)


def test_a_run_that_was_stopped_is_not_asked_for_ever():
    """A ServerApp that goes on after its run was stopped: Flower answers 403 then."""
    with pytest.raises(httpx.HTTPStatusError):
        exchange(cast(Grid, Moody(403)), "query.x", RecordDict(), {"a": 2}, group="0", timeout=30)


@pytest.mark.parametrize(
    ("said", "code"),
    [({"code": "policy"}, Code.POLICY), ({"code": "other"}, Code.UNKNOWN), ({}, Code.UNKNOWN)],
)
def test_why_a_node_refuses_is_read_from_its_code(said: dict[str, str], code: Code):
    """Words for people that are read as protocol; a node of another release that ends the run."""
    grid = Moody()
    grid.push_messages([Message(RecordDict(), dst_node_id=2, message_type="query.x")])
    about = ConfigRecord({"reason": "policy: not today", "node": "north", **said})
    replies = Replies()
    replies.take("a", Message(RecordDict({"refused": about}), reply_to=grid._sent[0]), 30)
    assert (replies.codes, replies.refused) == ({"a": code}, {"a": "policy: not today"})
    assert (replies.called, replies.contents) == ({"a": "north"}, {})
