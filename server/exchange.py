"""Push messages, pull replies: one loop for every phase of a run.

Flower's own `send_and_receive` polls every 3 s; polling at 0.2 s takes seconds off every round. A
reply is matched by the message it answers (an error reply for a lost node does not carry that
node's id), so a late reply of an earlier round is never seen.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedgraft.common.wire.update import message_bytes

POLL = 0.2  # seconds


@dataclass
class Replies:
    """What came back in one exchange, by node name; nodes in neither dictionary did not answer in
    time.
    """

    contents: dict[str, RecordDict] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    called: dict[str, str] = field(default_factory=dict)  # what those that refused call themselves
    down: dict[str, int] = field(default_factory=dict)  # bytes by node
    up: dict[str, int] = field(default_factory=dict)


def exchange(
    grid: Grid,
    kind: str,
    content: RecordDict,
    nodes: Mapping[str, int],
    *,
    group: str,
    timeout: float,
    on_reply: Callable[[str], None] = lambda name: None,
) -> Replies:
    """Send one content to several nodes and collect what they answer.

    Args:
        kind: Flower's message type (`train`, `evaluate`, `query.offer` …).
        nodes: node names and their Flower ids.
        group: Flower's group id; the round's number.
        timeout: seconds after which nodes that have not answered are given up.
        on_reply: called with each node's name as its reply arrives.
    """
    result = Replies()
    names = list(nodes)
    messages = [
        Message(content, dst_node_id=nodes[name], message_type=kind, group_id=group, ttl=timeout)
        for name in names
    ]
    size = message_bytes(messages[0]) if messages else 0
    result.down = dict.fromkeys(
        names, size
    )  # the same content for all: serialised once to be counted
    pushed = list(grid.push_messages(messages)) or [""] * len(
        names
    )  # nothing at all: too large for the SuperLink
    waiting: dict[str, str] = {}
    for message_id, name in zip(pushed, names, strict=True):
        if message_id:
            waiting[message_id] = name
        else:  # the node has left since it was listed
            result.refused[name], result.down[name] = "the message could not be delivered", 0
    deadline = time.monotonic() + timeout
    while waiting and time.monotonic() < deadline:
        arrived = _ready(grid, list(waiting))
        for message in arrived:
            name = waiting.pop(message.metadata.reply_to_message_id, None)
            if name is None:
                continue
            if message.has_error():
                result.refused[name] = _words(message.error.reason, timeout)
            else:
                result.up[name] = message_bytes(message)
                if refusal := message.content.config_records.get("refused"):
                    result.refused[name] = str(refusal.get("reason", "no reason given"))[:2000]
                    result.called[name] = str(refusal.get("node", name))[:100]
                else:
                    result.contents[name] = message.content
            on_reply(name)
        if not arrived:
            time.sleep(POLL)
    for name in waiting.values():
        result.refused[name] = f"no answer within {timeout:g} s"
    return result


def _ready(grid: Grid, ids: list[str]) -> list[Message]:
    """Replies that are there. A SuperLink that fails for a moment is asked again.

    Seen with 340 MB to two nodes on a busy machine: its database was locked, and the answer was
    500.
    """
    try:
        return list(grid.pull_messages(ids))
    except Exception as error:
        if getattr(getattr(error, "response", None), "status_code", 0) < 500:
            raise
        return []


def _words(reason: str | None, timeout: float) -> str:
    if reason and "Message Unavailable" in reason:  # the message was no longer there to be answered
        return f"no answer within {timeout:g} s, or the node was removed"
    lines: Iterable[str] = (reason or "the node was lost").strip().splitlines()
    last = list(lines)[-1]
    raised = re.fullmatch(
        r"<class '[\w.]+'>:<['\"](.*)['\"]>", last
    )  # as Flower writes an exception
    return (raised.group(1) if raised and raised.group(1) else last)[:500]
