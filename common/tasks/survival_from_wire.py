"""Survival sums that came over the wire: read, and held against one another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedgraft.common.tasks.flat_sums import (
    check_keys,
    read_count_list,
    read_counts,
    read_loss,
)
from fedgraft.common.tasks.score_bins import BINS
from fedgraft.common.tasks.survival_sums import SurvivalSums
from fedgraft.common.tasks.survival_times import count_outcomes

KEYS = (
    "loss",
    "outcomes",
    "cases-at",
    "cases",
    "controls-at",
    "controls",
    "dead",
    "alive",
    "predicted",
)
# relative and absolute: for sums of floats in another order
ROUNDING = 1e-9


def sums_from_flat(flat: Mapping[str, Any], cuts: Sequence[float]) -> SurvivalSums:
    """Return the sums that `SurvivalSums.to_flat` wrote.

    Raises:
        ValueError: keys, types, sizes or values that no predictions could give, or totals that
            disagree.
    """
    check_keys(flat, KEYS)
    count = len(cuts)
    sums = SurvivalSums(
        cuts=tuple(cuts),
        outcomes=read_count_list(flat, "outcomes", count_outcomes(count), least=0),
        loss=read_loss(flat),
        cases=read_counts(flat, "cases", (count, BINS)),
        controls=read_counts(flat, "controls", (count, BINS)),
        dead=_read_sums(flat, "dead", count * count).reshape(count, count),
        alive=_read_sums(flat, "alive", count),
        predicted=_read_sums(flat, "predicted", count),
    )
    check_totals(sums)
    return sums


def check_totals(sums: SurvivalSums) -> None:
    """Raise `ValueError` where parts of the sums cannot be of the same people."""
    if _has_only_counts(sums):
        return
    events = sums.table.events
    survived = sums.table.reached[1:]
    if (sums.cases.sum(1) != events).any():
        raise ValueError("scores of cases and outcomes disagree")
    if (sums.controls.sum(1) != survived).any():
        raise ValueError("scores of controls and outcomes disagree")
    # a square of a probability is at most 1
    slack = ROUNDING * (1 + sums.examples)
    if (sums.dead > np.triu(np.ones_like(sums.dead)) * events[:, None] + slack).any():
        raise ValueError("squares of more people than had the event")
    if (np.triu(np.diff(sums.dead, axis=1)) > slack).any():
        raise ValueError("a predicted survival that rises")
    if (sums.alive > survived + slack).any():
        raise ValueError("squares of more people than were alive")
    if (sums.predicted > sums.examples + slack).any():
        raise ValueError("predicted survival of more people than there are")
    if (np.diff(sums.predicted) > slack).any():
        raise ValueError("a predicted survival that rises")
    if sums.examples == 0 and sums.loss != 0:
        raise ValueError("a loss without people")


def _has_only_counts(sums: SurvivalSums) -> bool:
    """Whether the sums are those of `SurvivalSums.only_counts`."""
    parts = (sums.cases, sums.controls, sums.dead, sums.alive, sums.predicted)
    return not (sums.loss or any(part.any() for part in parts))


def _read_sums(flat: Mapping[str, Any], name: str, length: int) -> np.ndarray:
    values = flat[name]
    if not isinstance(values, list) or len(values) != length or not all(map(_is_sum, values)):
        raise ValueError(f"{name} is not a list of {length} sums of what is at least 0")
    return np.array(values)


def _is_sum(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value >= 0
