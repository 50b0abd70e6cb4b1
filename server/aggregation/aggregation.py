"""What a run does with its nodes' updates: who is asked, what becomes of them, what it costs.

One implementation for each place of the noise, chosen here and nowhere else: no noise of the
server's own, or the server's (`privacy.mode: central`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.wire.update import AdapterUpdate
from fedgraft.server.aggregation.central_aggregation import CentralAggregation
from fedgraft.server.aggregation.plain_aggregation import PlainAggregation
from fedgraft.server.aggregation.rule import Memory
from fedgraft.server.rounds import Round


class Aggregation(Protocol):
    """What `federate` asks of it, round by round.

        aggregation = begin_aggregation(plan, nodes=8)
        cohort = aggregation.choose_cohort(names, 1)
        state = aggregation.aggregate(round_, updates)
        spent = aggregation.spent(1)

    After a restart it is begun anew, and `restore` gives it what a checkpoint holds.
    """

    @property
    def clip(self) -> float | None:
        """L2 norm that nodes clip the next round's updates to, where the server sets one."""
        ...

    def choose_cohort(self, names: Sequence[str], number: int) -> list[str]:
        """Return the nodes of a round, sorted."""
        ...

    def aggregate(self, round_: Round, updates: Mapping[str, AdapterUpdate]) -> dict[str, Tensor]:
        """Return the next shared adapter. Raises `RunFailed` where too few updates came."""
        ...

    def spent(self, rounds: int) -> Spent | None:
        """Return what the server's own noise costs a node after so many rounds; None: no noise."""
        ...

    def memory(self) -> Memory:
        """Return what must survive a restart, for the checkpoint."""
        ...

    def restore(self, memory: Memory) -> None:
        """Take over what `memory` gave."""
        ...


Begin = Callable[[Plan, int, bool], Aggregation]


def _begin_plain(plan: Plan, nodes: int, seeded_noise: bool) -> Aggregation:
    return PlainAggregation(plan)


def _begin_central(plan: Plan, nodes: int, seeded_noise: bool) -> Aggregation:
    return CentralAggregation(plan, nodes, seeded_noise=seeded_noise)


AGGREGATIONS: Mapping[str, Begin] = {
    "none": _begin_plain,
    "sample": _begin_plain,
    "local": _begin_plain,
    "central": _begin_central,
}


def begin_aggregation(plan: Plan, nodes: int, *, seeded_noise: bool = False) -> Aggregation:
    """Return the aggregation of a plan's run.

    Args:
        nodes: how many joined before the first round.
        seeded_noise: noise that can be repeated: for simulations only, it protects nobody.

    Raises:
        UserError: no noise is enough for the plan's ε.
    """
    return AGGREGATIONS[plan.privacy.mode](plan, nodes, seeded_noise)
