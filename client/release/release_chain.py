"""The node's end of the release chain: what leaves goes through every step, in this order."""

from __future__ import annotations

from collections.abc import Callable

from fedgraft.client.release.clip_step import clip
from fedgraft.client.release.encode_step import encode
from fedgraft.client.release.noise_step import add_noise
from fedgraft.client.release.outgoing import Outgoing, ReleaseTerms

Step = Callable[[Outgoing, ReleaseTerms], Outgoing]

STEPS: tuple[Step, ...] = (
    clip,
    add_noise,
    encode,
)


def release(outgoing: Outgoing, terms: ReleaseTerms) -> Outgoing:
    """Return an adapter as it leaves. Raise whatever a step raises; then nothing leaves."""
    for step in STEPS:
        outgoing = step(outgoing, terms)
    return outgoing
