"""Sums of losses at each temperature, as they travel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from flwr.app import MetricRecord, RecordDict

from fedgraft.common.statistics.temperature import TEMPERATURES
from fedgraft.common.wire.layout import BadUpdate, reading_foreign_bytes

TEMPERATURE = "temperature"
# examples in one report, and the largest sum of their losses; as in other sums of metrics
MOST = 2**40
LARGEST_LOSS = 1e30


@dataclass(frozen=True, eq=False)
class TemperatureSums:
    """What a node's validation records say of temperatures.

        TemperatureSums(0, np.zeros(len(TEMPERATURES)))

    Attributes:
        examples: how many records there are.
        losses: the sum of their losses at each temperature, float64 `(33,)`, nats.
    """

    examples: int
    losses: np.ndarray

    def __add__(self, other: TemperatureSums) -> TemperatureSums:
        return TemperatureSums(self.examples + other.examples, self.losses + other.losses)

    @classmethod
    def nothing(cls) -> TemperatureSums:
        """Return the sums of no records."""
        return cls(0, np.zeros(len(TEMPERATURES)))

    def to_record(self) -> RecordDict:
        """Return the content of a reply; `read_temperatures` reads it."""
        numbers = MetricRecord({"examples": self.examples, "losses": self.losses.tolist()})
        return RecordDict({TEMPERATURE: numbers})


@reading_foreign_bytes()
def read_temperatures(content: RecordDict) -> TemperatureSums:
    """Return the sums in a reply. Raise `BadUpdate` for what no records could give."""
    if set(content.keys()) != {TEMPERATURE}:
        names = sorted(map(str, content.keys()))[:5]
        raise BadUpdate(f"records {names}; sums of losses alone were agreed on")
    values = dict(content.metric_records[TEMPERATURE])
    if set(values) != {"examples", "losses"}:
        raise BadUpdate("sums of losses have keys missing or unknown")
    examples = values["examples"]
    losses = values["losses"]
    if not isinstance(examples, int) or not 0 <= examples <= MOST:
        raise BadUpdate(f"{str(examples)[:40]} examples")
    if not isinstance(losses, list) or len(losses) != len(TEMPERATURES):
        raise BadUpdate(f"sums of losses are not those of {len(TEMPERATURES)} temperatures")
    if not all(_is_loss(loss) for loss in losses):
        raise BadUpdate("a sum of losses is no number from 0 on")
    if examples == 0 and any(losses):
        raise BadUpdate("losses without examples")
    return TemperatureSums(examples, np.array(losses, np.float64))


def _is_loss(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and 0 <= value <= LARGEST_LOSS
