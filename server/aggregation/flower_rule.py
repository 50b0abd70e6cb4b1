"""Flower's strategies as rules: only their arithmetic is used, on checked updates."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedgraft.common.errors import RunFailed
from fedgraft.common.wire.layout import ADAPTER
from fedgraft.server.aggregation.rule import Updates


def combine_with(strategy: FedAvg, updates: Updates) -> np.ndarray:
    """Return what a strategy makes of updates, `(values,)`.

    Raises:
        RunFailed: it makes nothing of them.
    """
    replies = []
    for values, weight in zip(updates.flat_states(), updates.weights, strict=True):
        replies.append(_reply(values, weight))
    arrays, _ = strategy.aggregate_train(updates.round, replies)
    if arrays is None:
        raise RunFailed(f"round {updates.round}: {type(strategy).__name__} gave no result")
    return arrays[ADAPTER].numpy()


def _reply(values: np.ndarray, weight: int) -> Message:
    """Return a reply as Flower's strategies read it, with nothing of a node's own in it."""
    numbers = MetricRecord({"num-examples": weight})
    arrays = ArrayRecord({ADAPTER: Array(values)})
    content = RecordDict({ADAPTER: arrays, "train": numbers})
    return Message(content, dst_node_id=1, message_type="train")
