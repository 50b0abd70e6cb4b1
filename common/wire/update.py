"""AdapterUpdate ⇄ Flower RecordDict: the only door through which anything leaves a node."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.privacy.clipping import apply_update
from fedgraft.common.wire.encoding import decode, error_bound
from fedgraft.common.wire.layout import (
    ADAPTER,
    BadUpdate,
    Layout,
    check_believable,
    check_keys,
    pack,
    reading_foreign_bytes,
    unpack,
)
from fedgraft.common.wire.metric_records import read_sums
from fedgraft.common.wire.spent_record import read_spent, spent_record

RECORDS = {ADAPTER, "train", "about", "received", "privacy"}
_SPENT = (
    "what was spent of the privacy budget (ε, δ, noise, sample rate, steps), and the seconds that"
    " training took"
)
# what goes with every update, in words for people, by privacy.mode
BESIDE = {
    "none": (
        "the number of training examples, the steps and seconds that training took, and its mean"
        " loss"
    ),
    "sample": _SPENT,
    "local": _SPENT,
    "central": "the seconds that training took",
}


@dataclass(frozen=True)
class Expected:
    """What a reply must be to be read.

        Expected(layout, round=3, task=plan.task, encoding="int8", sent=state)

    Attributes:
        layout: of the adapter.
        round: that it belongs to, from 1.
        task: whose metrics it may bring.
        encoding: how the update travels; see `common/wire/encoding.py`.
        sent: the adapter that it was made of; needed for an encoded update.
    """

    layout: Layout
    round: int
    task: TaskSection
    encoding: str = "none"
    sent: Mapping[str, Tensor] | None = None


class Numbers(NamedTuple):
    """What a reply tells beside the adapter."""

    examples: int
    steps: int
    train_loss: float | None
    seconds: float


@dataclass(frozen=True)
class AdapterUpdate:
    """What one node sends back after one round.

        content = update.to_record(layout)
        AdapterUpdate.from_record(content, Expected(layout, round=3, task=plan.task))

    Attributes:
        round: the round it belongs to, from 1.
        state: the adapter's tensors after local training.
        examples: training examples behind it (the weight of the average).
        steps: optimizer steps taken.
        train_loss: mean loss over the local steps, nats; None under differential privacy.
        seconds: time of local training.
        received: sums of metrics of the model as it was *received*, on the node's test split, or
            None.
        spent: what the run has spent at this node so far, under differential privacy.
        rounding: at most this part of the update is lost to its encoding for now.
    """

    round: int
    state: dict[str, Tensor]
    examples: int
    steps: int
    train_loss: float | None
    seconds: float
    received: Any
    spent: Spent | None = None
    rounding: float = 0.0

    def to_record(self, layout: Layout, encoded: np.ndarray | None = None) -> RecordDict:
        """Return the reply's content: one array and a few numbers; nothing else.

        Args:
            encoded: the update as `common/wire/encoding.py` encodes it, to travel instead of the
                state.
        """
        numbers: dict[str, Any] = {
            "num-examples": self.examples,
            "steps": self.steps,
            "seconds": self.seconds,
        }
        if self.train_loss is not None:
            numbers["train-loss"] = self.train_loss
        if encoded is None:
            arrays = pack(self.state, layout)
        else:
            arrays = ArrayRecord({ADAPTER: Array(encoded)})
        content = RecordDict(
            {
                ADAPTER: arrays,
                "train": MetricRecord(numbers),
                "about": ConfigRecord({"round": self.round, "layout": layout.digest}),
            }
        )
        if self.received is not None:
            content["received"] = MetricRecord(self.received.to_flat())
        if self.spent is not None:
            content["privacy"] = spent_record(self.spent)
        return content

    @classmethod
    @reading_foreign_bytes()
    def from_record(cls, content: RecordDict, expected: Expected) -> AdapterUpdate:
        """Read and check a reply.

        Raises:
            BadUpdate: with what is wrong, in words for the result's `refused`.
        """
        if extra := set(content.keys()) - RECORDS:
            raise BadUpdate(f"unexpected records {sorted(extra)[:5]}")
        numbers = _read_numbers(content, expected)
        state, rounding = _read_state(content.array_records[ADAPTER], expected)
        return cls(
            round=expected.round,
            state=state,
            rounding=rounding,
            examples=numbers.examples,
            steps=numbers.steps,
            train_loss=numbers.train_loss,
            seconds=numbers.seconds,
            received=_read_received(content, expected),
            spent=_read_spent(content),
        )


def _read_received(content: RecordDict, expected: Expected) -> Any:
    """Return the metrics of the model as it was received; None where the reply has none."""
    received = content.metric_records.get("received")
    if received is None:
        return None
    return read_sums(received, expected.task)


def _read_spent(content: RecordDict) -> Spent | None:
    """Return what was spent of the privacy budget; None where the reply has nothing of it."""
    spent = content.config_records.get("privacy")
    if spent is not None:
        return read_spent(spent)
    if "privacy" in content:
        raise BadUpdate("what was spent is of the wrong type")
    return None


def _read_numbers(content: RecordDict, expected: Expected) -> Numbers:
    """Return what a reply tells beside the adapter. Raise `BadUpdate` for what cannot be."""
    try:
        content.array_records[ADAPTER]
        about: dict[str, Any] = dict(content.config_records["about"])
        values: dict[str, Any] = dict(content.metric_records["train"])
        round_ = int(about["round"])
        digest = str(about["layout"])
        examples = int(values["num-examples"])
        steps = int(values["steps"])
        seconds = float(values["seconds"])
        loss = values.get("train-loss")
        if loss is not None:
            loss = float(loss)
    except (KeyError, TypeError, ValueError) as error:
        what = f"a part of the reply is missing or of the wrong type ({error})"
        raise BadUpdate(what) from error
    if round_ != expected.round:
        raise BadUpdate(f"a reply of round {round_} in round {expected.round}")
    agreed = expected.layout.digest
    if digest != agreed:
        raise BadUpdate(f"layout {digest}; {agreed} was agreed on (other names or shapes)")
    finite = math.isfinite(loss or 0.0) and math.isfinite(seconds)
    if examples < 1 or steps < 0 or not finite:
        raise BadUpdate(f"{examples} examples, {steps} steps, loss {loss}: not believable")
    return Numbers(examples, steps, loss, seconds)


def _read_state(arrays: ArrayRecord, expected: Expected) -> tuple[dict[str, Tensor], float]:
    """Return the adapter of a reply, and which part of the update its encoding may have lost."""
    if expected.encoding == "none":
        return unpack(arrays, expected.layout), 0.0
    state = _unpack_encoded(arrays, expected)
    shapes = expected.layout.shapes
    return state, error_bound(arrays[ADAPTER].numpy(), shapes, expected.encoding)


def _unpack_encoded(arrays: ArrayRecord, expected: Expected) -> dict[str, Tensor]:
    """Return the adapter that was sent, moved by an encoded update. Raise as `unpack`."""
    check_keys(arrays)
    if expected.sent is None:
        raise BadUpdate("an encoded update, and no adapter that it was made of")
    try:
        update = decode(arrays[ADAPTER].numpy(), expected.layout.shapes, expected.encoding)
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise BadUpdate(f"the array cannot be read as {expected.encoding} ({error})") from error
    state = apply_update(expected.sent, update)
    check_believable(torch.cat([tensor.reshape(-1) for tensor in state.values()]))
    return state
