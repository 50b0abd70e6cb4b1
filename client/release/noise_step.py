"""Step: the noise of mode local, on a node that trusts nobody.

Whatever this node's data are, two updates are at most twice the clipping norm apart: the noise is
scaled to that.
"""

from __future__ import annotations

from dataclasses import replace

from fedgraft.client.release.outgoing import Outgoing, ReleaseTerms
from fedgraft.common.privacy.clipping import noise_like


def add_noise(outgoing: Outgoing, terms: ReleaseTerms) -> Outgoing:
    """Return the adapter with noise on its clipped update, where the node adds any."""
    mechanism = terms.mechanism
    if mechanism is None or terms.randomness is None:
        return outgoing
    update = outgoing.difference()
    deviation = mechanism.noise_multiplier * 2 * mechanism.max_grad_norm
    noise = noise_like(update, deviation, terms.randomness)
    noisy = {name: update[name] + noise[name] for name in update}
    return replace(outgoing, update=noisy)
