"""FedAvgM: momentum on the server, over FedAvg's mean (Hsu et al. 2019)."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvgM

from fedgraft.common.plan.aggregate_section import AggregateSection
from fedgraft.common.wire.layout import ADAPTER
from fedgraft.server.aggregation.flower_rule import combine_with
from fedgraft.server.aggregation.rule import Memory, Rule, Updates

MOMENTUM = 0.9
LEARNING_RATE = 1.0


def begin(aggregate: AggregateSection) -> FedAvgM:
    """Return Flower's strategy with the plan's learning rate and momentum."""
    momentum = aggregate.server_momentum
    if momentum is None:
        momentum = MOMENTUM
    rate = aggregate.server_lr or LEARNING_RATE
    return FedAvgM(server_learning_rate=rate, server_momentum=momentum)


def combine(strategy: FedAvgM, updates: Updates) -> np.ndarray:
    """Return the adapter that was sent, moved by the momentum, `(values,)`."""
    strategy.current_arrays = ArrayRecord({ADAPTER: Array(updates.flat_sent())})
    return combine_with(strategy, updates)


def memory(strategy: FedAvgM) -> Memory:
    """Return the momentum, once there is one."""
    if strategy.momentum_vector is None:
        return {}
    return {"momentum": strategy.momentum_vector[0]}


def restore(strategy: FedAvgM, memory: Memory) -> None:
    """Take the momentum over."""
    if "momentum" in memory:
        strategy.momentum_vector = [memory["momentum"]]


FEDAVGM = Rule(
    begin,
    combine,
    sees="a sum is enough",
    is_average=True,
    memory=memory,
    restore=restore,
)
