"""Push messages, pull replies: one loop for every phase of a run.

Flower's own `send_and_receive` polls every 3 s; polling at 0.2 s takes seconds off every round. A
reply is matched by the message it answers (an error reply for a lost node does not carry that
node's id), so a late reply of an earlier round is never seen.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedgraft.common.errors import Code
from fedgraft.common.files.foreign_text import as_printable
from fedgraft.common.result import Traffic
from fedgraft.common.wire.layout import BadUpdate
from fedgraft.common.wire.message_size import message_bytes

# seconds between two pulls
POLL = 0.2


class Reader(Protocol):
    """Reads replies as they arrive, so that not all of them are held at once."""

    def read(self, name: str, content: RecordDict) -> None:
        """Take in one node's reply. Raises `BadUpdate`."""
        ...

    def pass_over(self, name: str) -> None:
        """Take note that nothing will be read from this node."""
        ...


@dataclass
class Replies:
    """What came back in one exchange, by node name.

    Attributes:
        contents: of the nodes that did what they were asked to do.
        refused: why the others did not, in words, the silent ones among them.
        codes: of those that refused themselves, why, for programs.
        called: what those that refused themselves call themselves.
        lost: those that ended, or went away, before they could answer.
        down, up: bytes to and from each node.
    """

    contents: dict[str, RecordDict] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    codes: dict[str, Code] = field(default_factory=dict)
    called: dict[str, str] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    down: dict[str, int] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)

    def take(
        self, name: str, message: Message, timeout: float, reader: Reader | None = None
    ) -> None:
        """Write down one node's reply, or let it be read at once and forgotten."""
        self._take(name, message, timeout, reader)
        if name in self.refused and reader is not None:
            reader.pass_over(name)

    def _take(self, name: str, message: Message, timeout: float, reader: Reader | None) -> None:
        if message.has_error():
            self.lost.add(name)
            self.refused[name] = as_printable(_words(message.error.reason, timeout))
            return
        self.up[name] = message_bytes(message)
        refusal = message.content.config_records.get("refused")
        if refusal:
            self._take_refusal(name, refusal)
        elif reader is None:
            self.contents[name] = message.content
        else:
            try:
                reader.read(name, message.content)
            except BadUpdate as error:
                self.refused[name] = as_printable(str(error))

    def traffic(self) -> Traffic:
        """Return the bytes to and from all nodes that were asked."""
        down = sum(self.down.values())
        up = sum(self.up.values())
        return Traffic(nodes=len(self.down), down=down, up=up)

    def _take_refusal(self, name: str, refusal: ConfigRecord) -> None:
        self.refused[name] = as_printable(str(refusal.get("reason", "no reason given")))
        self.codes[name] = Code.read(refusal.get("code"))
        self.called[name] = as_printable(str(refusal.get("node", name)), most=100)


def exchange(
    grid: Grid,
    kind: str,
    content: RecordDict,
    nodes: Mapping[str, int],
    *,
    group: str,
    timeout: float,
    reader: Reader | None = None,
) -> Replies:
    """Send one content to several nodes and return what they answer.

    Args:
        kind: Flower's message type (`train`, `evaluate`, `query.offer` …).
        nodes: node names and their Flower ids.
        group: Flower's group id; the round's number.
        timeout: seconds after which nodes that have not answered are given up.
        read: takes each node's content as it arrives, which is then not kept; raises `BadUpdate`
            for one that may not count.
    """
    messages = []
    for node_id in nodes.values():
        message = Message(
            content, dst_node_id=node_id, message_type=kind, group_id=group, ttl=timeout
        )
        messages.append(message)
    replies = Replies(down=_sizes(messages, nodes))

    waiting: dict[str, str] = {}
    for message_id, name in zip(_push(grid, messages), nodes, strict=True):
        if message_id:
            waiting[message_id] = name
        else:
            # the node has left since it was listed
            replies.refused[name] = "the message could not be delivered"
            replies.down[name] = 0

    deadline = time.monotonic() + timeout
    while waiting and time.monotonic() < deadline:
        # a view: to copy ten thousand ids at each look takes longer than what comes
        arrived = _ready(grid, waiting.keys())
        for message in arrived:
            name = waiting.pop(message.metadata.reply_to_message_id, None)
            if name is not None:
                replies.take(name, message, timeout, reader)
        if not arrived:
            time.sleep(POLL)
    for name in waiting.values():
        replies.refused[name] = f"no answer within {timeout:g} s; a later one is dropped"
    return replies


def _sizes(messages: list[Message], nodes: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes to each node: the same content for all, serialised once to be counted."""
    if not messages:
        return {}
    return dict.fromkeys(nodes, message_bytes(messages[0]))


def _push(grid: Grid, messages: list[Message]) -> list[str]:
    """Send the messages and return their ids, empty for one that could not be delivered.

    Flower leaves ids out of its answer, all of them where the messages are too large for the
    SuperLink, and in a simulation those that were too late when they came; so the answer is read
    by its ids, not by their places.
    """
    pushed = set(grid.push_messages(messages))
    ids = [message.metadata.message_id for message in messages]
    return [message_id if message_id in pushed else "" for message_id in ids]


def _ready(grid: Grid, ids: Iterable[str]) -> list[Message]:
    """Return replies that are there. A SuperLink that fails for a moment is asked again.

    Seen with 340 MB to two nodes on a busy machine: its database was locked, and the answer was
    500.
    """
    try:
        return list(grid.pull_messages(ids))
    except Exception as error:
        response = getattr(error, "response", None)
        if getattr(response, "status_code", 0) < 500:
            raise
        return []


def _words(reason: str | None, timeout: float) -> str:
    """Return Flower's error reply in words, a node's own without what Flower wraps them in."""
    text = reason or "the node was lost"
    if "Message Unavailable" in text:
        # it was no longer there to be answered
        return f"no answer within {timeout:g} s, or the node was removed"
    last = text.strip().splitlines()[-1]
    # as Flower writes an exception
    raised = re.fullmatch(r"<class '[\w.]+'>:<['\"](.*)['\"]>", last)
    if raised is not None:
        last = raised.group(1) or last
    return last[:500]
