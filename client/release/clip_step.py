"""Step: a whole update is brought within an L2 norm, in the modes central and local."""

from __future__ import annotations

from dataclasses import replace

from fedgraft.client.release.outgoing import Outgoing, ReleaseTerms
from fedgraft.common.privacy.clipping import clip_update


def clip(outgoing: Outgoing, terms: ReleaseTerms) -> Outgoing:
    """Return the adapter with its update clipped, where what leaves is a whole update."""
    privacy = terms.plan.privacy
    if not privacy.on_updates:
        return outgoing
    norm = terms.clip or privacy.max_update_norm
    return replace(outgoing, update=clip_update(outgoing.difference(), norm))
