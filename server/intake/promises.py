"""Step: a node keeps to the plan's privacy and to the weight that it joined with."""

from __future__ import annotations

from fedgraft.common.wire.layout import BadUpdate
from fedgraft.server.intake.incoming import Incoming, Terms


def check_promises(incoming: Incoming, terms: Terms) -> Incoming:
    """Return the reply as it is. Raises `BadUpdate` for another privacy or a larger weight."""
    privacy = terms.round.plan.privacy
    update = incoming.update
    is_private = update.spent is not None
    if is_private != privacy.at_node:
        raise BadUpdate(f"privacy.mode is {privacy.mode}, and the reply was made under another")
    if update.examples > terms.offered:
        claimed = f"claims a weight of {update.examples} examples"
        raise BadUpdate(f"{claimed}; it joined with {terms.offered}")
    return incoming
