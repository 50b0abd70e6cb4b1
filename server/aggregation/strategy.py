"""Flower's strategies by the plan's name, fed only with replies that were checked.

An average over adapters is Flower's; which node may take part, and whether enough did, is decided
here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from torch import Tensor

from fedgraft.common.errors import RunFailed
from fedgraft.common.plan.plan import Aggregate
from fedgraft.common.wire.update import ADAPTER, AdapterUpdate, Layout, pack, split_flat
from fedgraft.server.aggregation.averages import svd_mean
from fedgraft.server.aggregation.central_privacy import Central

ADAPTIVE = (flower.FedAdam, flower.FedYogi, flower.FedAdagrad)


def build(aggregate: Aggregate, proximal: float) -> flower.FedAvg:
    """The Flower strategy that the plan names, with the plan's settings; Flower's own where it has
    none.
    """
    match aggregate.strategy:
        case "fedavg":
            return flower.FedAvg()
        case "fedprox":  # the proximal term itself is in client/training/local_steps.py
            return flower.FedProx(proximal_mu=proximal)
        case "fedavgm":
            return flower.FedAvgM(
                server_learning_rate=aggregate.server_lr or 1.0,
                server_momentum=0.9
                if aggregate.server_momentum is None
                else aggregate.server_momentum,
            )
        case "fedadam":
            return flower.FedAdam(eta=aggregate.server_lr or 0.1)
        case "fedyogi":
            return flower.FedYogi(eta=aggregate.server_lr or 0.01)
        case "fedadagrad":
            return flower.FedAdagrad(eta=aggregate.server_lr or 0.1)
        case "median":
            return flower.FedMedian()
        case "trimmed-mean":
            return flower.FedTrimmedAvg(beta=aggregate.trim)
        case "krum":
            return flower.Krum(num_malicious_nodes=aggregate.byzantine)
    raise AssertionError(aggregate.strategy)  # the plan's door admits no other name


def cohort(names: list[str], *, fraction: float, least: int, seed: int, round_: int) -> list[str]:
    """The nodes of one round: a seeded sample without replacement of `max(least, fraction · n)`,
    sorted.
    """
    size = min(len(names), max(least, round(fraction * len(names))))
    return sorted(random.Random(f"{seed}/{round_}").sample(sorted(names), size))


def aggregate_round(
    strategy: flower.FedAvg,
    aggregate: Aggregate,
    *,
    round_: int,
    sent: Mapping[str, Tensor],
    updates: Mapping[str, AdapterUpdate],
    layout: Layout,
) -> dict[str, Tensor]:
    """The next shared adapter from the round's valid updates.

    Updates are taken in the order of node names, so that floating-point sums do not depend on who
    was first.

    Raises:
        RunFailed: fewer valid updates than `min_nodes`, or than Krum needs.
    """
    needed = aggregate.min_nodes
    if aggregate.strategy == "krum":
        needed = max(needed, 2 * aggregate.byzantine + 3)  # Blanchard et al. 2017, Proposition 1
    if len(updates) < needed:
        raise RunFailed(f"round {round_}: {len(updates)} valid updates, {needed} are needed")
    state = combine(
        strategy, aggregate.strategy, round_=round_, sent=sent, updates=updates, layout=layout
    )
    if aggregate.lora_aggregation == "svd":
        ordered = [updates[name] for name in sorted(updates)]
        state |= svd_mean(
            [update.state for update in ordered], [update.examples for update in ordered]
        )
    return state


def aggregate_centrally(
    strategy: flower.FedAvg,
    central: Central,
    aggregate: Aggregate,
    *,
    round_: int,
    drawn: int,
    sent: Mapping[str, Tensor],
    updates: Mapping[str, AdapterUpdate],
    layout: Layout,
) -> dict[str, Tensor]:
    """The next shared adapter under node-level privacy: the strategy sees one update only, the
    noisy average.

    Args:
        drawn: size of the cohort. A round in which few were drawn is as good as any; one in which
            few of them answered is not.

    Raises:
        RunFailed: fewer valid updates than `min_nodes`, of more that were drawn.
    """
    if len(updates) < (needed := min(aggregate.min_nodes, drawn)):
        raise RunFailed(f"round {round_}: {len(updates)} valid updates, {needed} are needed")
    mean = central.aggregate(sent, {name: update.state for name, update in updates.items()}, round_)
    noisy = AdapterUpdate(
        round_, mean, examples=1, steps=0, train_loss=None, seconds=0.0, received=None
    )
    return combine(
        strategy, aggregate.strategy, round_=round_, sent=sent, updates={"": noisy}, layout=layout
    )


def combine(
    strategy: flower.FedAvg,
    name: str,
    *,
    round_: int,
    sent: Mapping[str, Tensor],
    updates: Mapping[str, AdapterUpdate],
    layout: Layout,
) -> dict[str, Tensor]:
    """What Flower's strategy makes of updates. Raises `RunFailed` where it makes nothing."""
    if isinstance(strategy, flower.FedAvgM):
        strategy.current_arrays = pack(sent, layout)
    elif isinstance(strategy, ADAPTIVE):
        strategy.current_arrays = {ADAPTER: pack(sent, layout)[ADAPTER].numpy()}
    messages = [_message(updates[node], layout) for node in sorted(updates)]
    arrays, _ = strategy.aggregate_train(round_, messages)
    if arrays is None:
        raise RunFailed(f"round {round_}: {name} gave no result")
    return split_flat(torch.from_numpy(arrays[ADAPTER].numpy().astype(np.float32)), layout)


def memory_of(strategy: flower.FedAvg) -> dict[str, np.ndarray]:
    """What a strategy remembers between rounds (moments, momentum), for the checkpoint."""
    if isinstance(strategy, flower.FedAvgM) and strategy.momentum_vector is not None:
        return {"momentum": strategy.momentum_vector[0]}
    memory = {}
    if isinstance(strategy, ADAPTIVE):
        memory = {"m": strategy.m_t, "v": strategy.v_t}
    return {key: moments[ADAPTER] for key, moments in memory.items() if moments is not None}


def restore(strategy: flower.FedAvg, memory: Mapping[str, np.ndarray]) -> None:
    """Give a strategy its memory back after a restart."""
    if isinstance(strategy, flower.FedAvgM) and "momentum" in memory:
        strategy.momentum_vector = [memory["momentum"]]
    if isinstance(strategy, ADAPTIVE) and "m" in memory:
        strategy.m_t, strategy.v_t = {ADAPTER: memory["m"]}, {ADAPTER: memory["v"]}


def _message(update: AdapterUpdate, layout: Layout) -> Message:
    """A clean message for Flower's classes: the checked tensors and their weight, nothing else of
    the reply.
    """
    numbers = MetricRecord({"num-examples": update.examples})
    content = RecordDict({ADAPTER: pack(update.state, layout), "train": numbers})
    return Message(content, dst_node_id=1, message_type="train")
