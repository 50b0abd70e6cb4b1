"""Replies read in the order of their nodes' names, each once all before it have answered or gone.

Sums of floating-point numbers depend on the order in which they are added. Read so, they keep their
bits whoever was first, and only replies that came early are held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedgraft.common.wire.layout import BadUpdate
from fedgraft.server.exchange import Replies, exchange
from fedgraft.server.handout import Roster
from fedgraft.server.messages import round_content
from fedgraft.server.rounds import Round


@dataclass(frozen=True)
class Question:
    """What all nodes of a federation are asked about a model.

    Attributes:
        kind: of the message.
        round: the model as a round that sends it out.
        group: of the messages.
    """

    kind: str
    round: Round
    group: str


def ask_in_order(
    grid: Grid, roster: Roster, question: Question, read: Callable[[str, RecordDict], None]
) -> Replies:
    """Ask every node, and read what they answer in the order of their names.

    Args:
        read: takes in one reply. Raises `BadUpdate`, and its node is among those that refused.
    """
    # in this order they are read, and as far as may be they arrive in it
    nodes = dict(sorted(roster.nodes.items()))
    reader = InOrder(nodes, read)
    replies = exchange(
        grid,
        question.kind,
        round_content(question.round),
        nodes,
        group=question.group,
        timeout=question.round.plan.aggregate.round_timeout,
        reader=reader,
    )
    reader.close()
    replies.refused |= reader.refused
    return replies


class InOrder:
    """Reads replies by name, whatever the order in which they arrive.

        reader = InOrder(["a", "b"], merging.add)
        reader.read("b", content)
        reader.pass_over("a")
        reader.close()

    Args:
        names: of the nodes that are asked.
        read: takes in one reply. Raises `BadUpdate`.

    Attributes:
        refused: why a reply was not taken in, by name.
    """

    def __init__(self, names: Iterable[str], read: Callable[[str, RecordDict], None]) -> None:
        self._names = deque(sorted(names))
        self._read = read
        # None: a node from which nothing is to be read
        self._early: dict[str, RecordDict | None] = {}
        self.refused: dict[str, str] = {}

    def read(self, name: str, content: RecordDict) -> None:
        """Take a node's reply, and read what may be read now."""
        self._early[name] = content
        self._go_on()

    def pass_over(self, name: str) -> None:
        """Wait for this node no more: it refused, or is gone."""
        self._early[name] = None
        self._go_on()

    def close(self) -> None:
        """Read what waited for nodes that did not answer in time."""
        for name in self._names:
            self._early.setdefault(name, None)
        self._go_on()

    def _go_on(self) -> None:
        while self._names and self._names[0] in self._early:
            name = self._names.popleft()
            content = self._early.pop(name)
            if content is None:
                continue
            try:
                self._read(name, content)
            except BadUpdate as error:
                self.refused[name] = str(error)
