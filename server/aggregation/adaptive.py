"""FedAdam, FedYogi, FedAdagrad: an adaptive step on the server along FedAvg's mean.

Reddi et al. 2021, "Adaptive federated optimization", algorithm 2. They differ in one class of
Flower's and in the learning rate that stands where the plan has none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedYogi

from fedgraft.common.plan.aggregate_section import AggregateSection
from fedgraft.common.wire.layout import ADAPTER
from fedgraft.server.aggregation.flower_rule import combine_with
from fedgraft.server.aggregation.rule import Memory, Rule, Updates

Adaptive = FedAdagrad | FedAdam | FedYogi


def combine(strategy: Adaptive, updates: Updates) -> np.ndarray:
    """Return the adapter that was sent, moved by the adaptive step, `(values,)`."""
    strategy.current_arrays = {ADAPTER: updates.flat_sent()}
    return combine_with(strategy, updates)


def memory(strategy: Adaptive) -> Memory:
    """Return both moments, once there are any."""
    moments = {"m": strategy.m_t, "v": strategy.v_t}
    return {key: arrays[ADAPTER] for key, arrays in moments.items() if arrays is not None}


def restore(strategy: Adaptive, memory: Memory) -> None:
    """Take both moments over."""
    if "m" in memory:
        strategy.m_t = {ADAPTER: memory["m"]}
        strategy.v_t = {ADAPTER: memory["v"]}


def rule_of(strategy: type[Any], learning_rate: float) -> Rule[Any]:
    """Return the rule of one of the three strategies, with its usual learning rate η."""

    def begin(aggregate: AggregateSection) -> Adaptive:
        return strategy(eta=aggregate.server_lr or learning_rate)

    return Rule(
        begin,
        combine,
        sees="a sum is enough",
        is_average=True,
        memory=memory,
        restore=restore,
    )


FEDADAM = rule_of(FedAdam, 0.1)
FEDYOGI = rule_of(FedYogi, 0.01)
FEDADAGRAD = rule_of(FedAdagrad, 0.1)
