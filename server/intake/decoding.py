"""Step: the records of a reply become the adapter that the node made."""

from __future__ import annotations

from fedgraft.common.wire.update import AdapterUpdate, Expected
from fedgraft.server.intake.incoming import Incoming, Terms


def decode(incoming: Incoming, terms: Terms) -> Incoming:
    """Read the update. Raises `BadUpdate` for records that are not what was agreed on."""
    round_ = terms.round
    expected = Expected(
        round_.layout,
        round_.number,
        round_.plan.task,
        round_.plan.aggregate.encoding,
        round_.sent,
    )
    return incoming.having(AdapterUpdate.from_record(incoming.content, expected))
