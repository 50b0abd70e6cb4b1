"""FedAvg: the mean weighted by examples (McMahan et al. 2017, algorithm 1)."""

from __future__ import annotations

from flwr.serverapp.strategy import FedAvg

from fedgraft.common.plan.aggregate_section import AggregateSection
from fedgraft.server.aggregation.flower_rule import combine_with
from fedgraft.server.aggregation.rule import Rule


def begin(aggregate: AggregateSection) -> FedAvg:
    """Return Flower's strategy; the plan has no setting for it."""
    return FedAvg()


FEDAVG = Rule(begin, combine_with, sees="a sum is enough", is_average=True)

# Li et al. 2020: its proximal term is the nodes' business (client/training); the server averages.
FEDPROX = FEDAVG
