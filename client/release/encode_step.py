"""Step: an update in fewer bytes; what rounding loses is kept for the next round."""

from __future__ import annotations

from dataclasses import replace

from fedgraft.client.release.outgoing import Outgoing, ReleaseTerms
from fedgraft.common.privacy.clipping import update_of


def encode(outgoing: Outgoing, terms: ReleaseTerms) -> Outgoing:
    """Return the adapter with its update encoded, where the plan wants that."""
    encoding = terms.plan.aggregate.encoding
    if encoding == "none" or terms.memory is None or terms.layout is None:
        return outgoing
    update = update_of(outgoing.state(), outgoing.received)
    encoded = terms.memory.encode(update, terms.layout, encoding, terms.round)
    return replace(outgoing, encoded=encoded)
