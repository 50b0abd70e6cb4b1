"""The server's end of the release chain: what was encoded last at the node is undone first here."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import RecordDict

from fedgraft.common.wire.update import AdapterUpdate
from fedgraft.server.intake.decoding import decode
from fedgraft.server.intake.incoming import Incoming, Terms
from fedgraft.server.intake.promises import check_promises
from fedgraft.server.intake.weights import weigh

Step = Callable[[Incoming, Terms], Incoming]

STEPS: tuple[Step, ...] = (
    decode,
    check_promises,
    weigh,
)


def admit(content: RecordDict, terms: Terms) -> AdapterUpdate:
    """Return the update in a reply.

    Raises:
        BadUpdate: it may not be combined; says why.
    """
    incoming = Incoming(content)
    for step in STEPS:
        incoming = step(incoming, terms)
    return incoming.update
