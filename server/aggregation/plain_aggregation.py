"""Aggregation without noise of the server's own: a seeded cohort, and the plan's rule."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from fedgraft.common.errors import RunFailed
from fedgraft.common.plan.plan import Plan
from fedgraft.common.wire.update import AdapterUpdate
from fedgraft.server.aggregation.combiner import Combiner
from fedgraft.server.aggregation.lora_factors import LORA_STEPS
from fedgraft.server.aggregation.rule import Memory, Updates
from fedgraft.server.rounds import Round


class PlainAggregation:
    """Who is asked, and what becomes of the answers, where nodes protect their data or nobody does.

    Attributes:
        clip: None: the plan says what nodes clip to, if they do.
    """

    clip = None

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._combiner = Combiner(plan.aggregate)
        self._after = LORA_STEPS[plan.aggregate.lora_aggregation]

    def choose_cohort(self, names: Sequence[str], number: int) -> list[str]:
        """Return a seeded sample without replacement of max(min_nodes, fraction · n), sorted."""
        aggregate = self._plan.aggregate
        size = max(aggregate.min_nodes, round(aggregate.fraction * len(names)))
        size = min(size, len(names))
        draw = random.Random(f"{self._plan.seed}/{number}")
        return sorted(draw.sample(sorted(names), size))

    def aggregate(self, round_: Round, updates: Mapping[str, AdapterUpdate]) -> dict[str, Tensor]:
        """Return the next shared adapter from a round's valid updates.

        They are taken in the order of node names, so that floating-point sums do not depend on who
        was first.

        Raises:
            RunFailed: fewer valid updates than `min_nodes`, or than the rule needs.
        """
        needed = max(self._plan.aggregate.min_nodes, self._combiner.fewest)
        check_enough(len(updates), needed, round_.number)
        ordered = [updates[name] for name in sorted(updates)]
        batch = Updates(
            round=round_.number,
            layout=round_.layout,
            sent=round_.sent,
            states=[update.state for update in ordered],
            weights=[self._weigh(update) for update in ordered],
        )
        return self._after(self._combiner.combine(batch), batch)

    def _weigh(self, update: AdapterUpdate) -> int:
        """Return what an update counts for in an average."""
        if self._plan.aggregate.weighting == "equal":
            return 1
        return update.examples

    def spent(self, rounds: int) -> None:
        """Return None: the server adds no noise, and what nodes spend they report themselves."""

    def memory(self) -> Memory:
        """Return what the rule remembers."""
        return self._combiner.memory()

    def restore(self, memory: Memory) -> None:
        """Give the rule its memory back."""
        self._combiner.restore(memory)


def check_enough(valid: int, needed: int, number: int) -> None:
    """Raise `RunFailed` where fewer updates are valid than are needed."""
    if valid < needed:
        raise RunFailed(f"round {number}: {valid} valid updates, {needed} are needed")
