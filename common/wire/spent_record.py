"""What was spent of a privacy budget, as it travels."""

from __future__ import annotations

import math
from typing import Any

from flwr.app import ConfigRecord

from fedgraft.common.privacy.accounting import NEIGHBOURS, Spent
from fedgraft.common.privacy.history import Row
from fedgraft.common.wire.layout import BadUpdate

# of a privacy history
COLUMNS = ("noise-multipliers", "sample-rates", "steps")
# rows of a history
LONGEST = 10_000
ACCOUNTANTS = ("prv", "rdp")


def spent_record(spent: Spent) -> ConfigRecord:
    """Return what was spent, as it travels; `read_spent` reads it."""
    values: dict[str, Any] = spent.to_json()
    del values["history"]
    for at, name in enumerate(COLUMNS):
        values[name] = [row[at] for row in spent.history]
    return ConfigRecord(values)


def read_spent(record: ConfigRecord) -> Spent:
    """Return what was spent, from the wire. Raise `BadUpdate` where it is no ε of any history."""
    try:
        values: dict[str, Any] = dict(record)
        history = _read_history(values)
        epsilon = float(values["epsilon"])
        delta = float(values["delta"])
        spent = Spent(epsilon, delta, values["unit"], values["accountant"], history)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadUpdate(f"what was spent is missing or of the wrong type ({error})") from error
    named = spent.unit in NEIGHBOURS and spent.accountant in ACCOUNTANTS
    in_range = 0 <= spent.epsilon < math.inf and 0 < spent.delta < 1
    counted = 0 < len(history) <= LONGEST and all(map(_is_row, history))
    if not (named and in_range and counted):
        raise BadUpdate("what was spent is no ε of any history")
    return spent


def _read_history(values: dict[str, Any]) -> tuple[Row, ...]:
    columns = [list(values[name]) for name in COLUMNS]
    history: list[Row] = []
    for noise_multiplier, sample_rate, steps in zip(*columns, strict=True):
        history.append((float(noise_multiplier), float(sample_rate), int(steps)))
    return tuple(history)


def _is_row(row: Row) -> bool:
    noise_multiplier, sample_rate, steps = row
    return 0 <= noise_multiplier < math.inf and 0 < sample_rate <= 1 and steps > 0
