"""The mean of each value without a part of the lowest and the highest (Yin et al. 2018)."""

from __future__ import annotations

from flwr.serverapp.strategy import FedTrimmedAvg

from fedgraft.common.plan.aggregate_section import AggregateSection
from fedgraft.server.aggregation.flower_rule import combine_with
from fedgraft.server.aggregation.rule import Rule


def begin(aggregate: AggregateSection) -> FedTrimmedAvg:
    """Return Flower's strategy with the part that the plan leaves out at each end."""
    return FedTrimmedAvg(beta=aggregate.trim)


TRIMMED_MEAN = Rule(begin, combine_with, sees="single updates", is_average=False)
