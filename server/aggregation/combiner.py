"""A plan's rule at work, over all rounds of a run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.plan.aggregate_section import AggregateSection
from fedgraft.common.wire.layout import split_flat
from fedgraft.server.aggregation.rule import Memory, Updates
from fedgraft.server.aggregation.rules import RULES


class Combiner:
    """Makes the next shared adapter of a round's updates, and remembers what its rule remembers.

        combiner = Combiner(plan.aggregate)
        combiner.restore(checkpoint.memory)
        state = combiner.combine(updates)

    Attributes:
        fewest: the least number of updates that the rule needs.
    """

    def __init__(self, aggregate: AggregateSection) -> None:
        self._rule = RULES[aggregate.strategy]
        self._state = self._rule.begin(aggregate)
        self.fewest = self._rule.fewest(aggregate)

    def combine(self, updates: Updates) -> dict[str, Tensor]:
        """Return the next shared adapter. Raises `RunFailed` where the rule makes nothing of it."""
        values = self._rule.combine(self._state, updates)
        flat = torch.from_numpy(values.astype(np.float32))
        return split_flat(flat, updates.layout)

    def memory(self) -> Memory:
        """Return what the rule remembers between rounds (moments, momentum), for the checkpoint."""
        return self._rule.memory(self._state)

    def restore(self, memory: Memory) -> None:
        """Give the rule its memory back after a restart."""
        self._rule.restore(self._state, memory)
