"""A reply on its way in, and what it is held to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flwr.app import RecordDict

from fedgraft.common.wire.layout import BadUpdate
from fedgraft.common.wire.update import AdapterUpdate
from fedgraft.server.rounds import Round


@dataclass(frozen=True)
class Terms:
    """What was agreed on with one node.

    Attributes:
        round: what it was sent, and when.
        offered: the weight that it said it would have, before the first round.
    """

    round: Round
    offered: int


@dataclass(frozen=True)
class Incoming:
    """A reply: its records as they came, and the update once it is decoded."""

    content: RecordDict
    decoded: AdapterUpdate | None = None

    @property
    def update(self) -> AdapterUpdate:
        """The decoded update. Raises `BadUpdate` before there is one."""
        if self.decoded is None:
            raise BadUpdate("no update in the reply")
        return self.decoded

    def having(self, update: AdapterUpdate) -> Incoming:
        """Return the reply with this update."""
        return replace(self, decoded=update)
