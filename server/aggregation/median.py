"""The median of each value (Yin et al. 2018)."""

from __future__ import annotations

from flwr.serverapp.strategy import FedMedian

from fedgraft.common.plan.aggregate_section import AggregateSection
from fedgraft.server.aggregation.flower_rule import combine_with
from fedgraft.server.aggregation.rule import Rule


def begin(aggregate: AggregateSection) -> FedMedian:
    """Return Flower's strategy; the plan has no setting for it."""
    return FedMedian()


MEDIAN = Rule(begin, combine_with, sees="single updates", is_average=False)
