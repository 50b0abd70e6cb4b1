"""Aggregation with noise of the server's own: the rule sees one update, the noisy average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.wire.update import AdapterUpdate
from fedgraft.server.aggregation.central_privacy import CentralPrivacy
from fedgraft.server.aggregation.combiner import Combiner
from fedgraft.server.aggregation.plain_aggregation import check_enough
from fedgraft.server.aggregation.rule import Memory, Updates
from fedgraft.server.rounds import Round


class CentralAggregation:
    """Who is asked, and what becomes of the answers, under node-level privacy at the server."""

    def __init__(self, plan: Plan, nodes: int, *, seeded_noise: bool = False) -> None:
        self._least = plan.aggregate.min_nodes
        self._combiner = Combiner(plan.aggregate)
        self._privacy = CentralPrivacy.begin(plan, nodes, seeded=seeded_noise)

    @property
    def clip(self) -> float:
        """L2 norm that updates of the next round are clipped to."""
        return self._privacy.clip

    def choose_cohort(self, names: Sequence[str], number: int) -> list[str]:
        """Return the nodes of a round, each drawn by its own coin; there may be none."""
        return self._privacy.choose_cohort(names, number)

    def aggregate(self, round_: Round, updates: Mapping[str, AdapterUpdate]) -> dict[str, Tensor]:
        """Return the next shared adapter from a round's valid updates.

        A round in which few were drawn is as good as any; one in which few of them answered is not.

        Raises:
            RunFailed: fewer valid updates than `min_nodes`, of more that were drawn.
        """
        check_enough(len(updates), min(self._least, len(round_.cohort)), round_.number)
        states = {name: update.state for name, update in updates.items()}
        mean = self._privacy.average(round_.sent, states, round_.number)
        return self._combiner.combine(
            Updates(
                round=round_.number,
                layout=round_.layout,
                sent=round_.sent,
                states=[mean],
                weights=[1],
            )
        )

    def spent(self, rounds: int) -> Spent:
        """Return ε of each node after so many rounds."""
        return self._privacy.spent(rounds)

    def memory(self) -> Memory:
        """Return what the rule remembers, with the norm, noise and denominator of the run."""
        return self._combiner.memory() | self._privacy.memory()

    def restore(self, memory: Memory) -> None:
        """Take both over."""
        self._combiner.restore(memory)
        self._privacy.restore(memory)
