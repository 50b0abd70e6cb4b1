"""One round as it is sent out: what the nodes are asked, and by what their answers are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.clipping import State
from fedgraft.common.wire.layout import Layout


@dataclass(frozen=True)
class Round:
    """One round of training of one plan.

    Attributes:
        number: of the round, from 1.
        layout: names, order and shapes of the adapter's tensors.
        sent: the shared adapter that goes out, tensors by name.
        cohort: names of the nodes that are asked, in their order.
        clip: L2 norm that updates are clipped to, where the server sets one.
        head: dotted name of the model's head among the adapter's tensors.
        places: of a record that sums are taken over, where a head answers for each.
    """

    plan: Plan
    number: int
    layout: Layout
    sent: State
    cohort: Sequence[str]
    clip: float | None = None
    head: str = ""
    places: int = 1

    @property
    def head_features(self) -> int:
        """How many features the head reads."""
        return self.sent[f"{self.head}.weight"].shape[1]
