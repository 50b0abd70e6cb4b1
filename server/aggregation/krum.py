"""Krum: the one update that is nearest to its neighbours (Blanchard et al. 2017)."""

from __future__ import annotations

from flwr.serverapp.strategy import Krum

from fedgraft.common.plan.aggregate_section import AggregateSection
from fedgraft.server.aggregation.flower_rule import combine_with
from fedgraft.server.aggregation.rule import Rule


def begin(aggregate: AggregateSection) -> Krum:
    """Return Flower's strategy with the number of nodes that may be bad."""
    return Krum(num_malicious_nodes=aggregate.byzantine)


def fewest(aggregate: AggregateSection) -> int:
    """Return 2 f + 3 updates for f bad nodes (Blanchard et al. 2017, proposition 1)."""
    return 2 * aggregate.byzantine + 3


KRUM = Rule(begin, combine_with, sees="single updates", is_average=False, fewest=fewest)
