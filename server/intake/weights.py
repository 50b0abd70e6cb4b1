"""Step: under differential privacy all nodes weigh the same, whatever they say."""

from __future__ import annotations

from dataclasses import replace

from fedgraft.server.intake.incoming import Incoming, Terms


def weigh(incoming: Incoming, terms: Terms) -> Incoming:
    """Return the reply with the weight that its update has in an average."""
    if terms.round.plan.privacy.mode == "none":
        return incoming
    return incoming.having(replace(incoming.update, examples=1))
