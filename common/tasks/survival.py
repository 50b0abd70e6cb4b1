"""When does it happen? The hazard of an event in each interval of time, for people of whom some
were lost before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.hazards import (
    hazard_losses,
    mean_hazard_loss,
    median_times,
    survival_curves,
)
from fedgraft.common.tasks.labels import BETWEEN
from fedgraft.common.tasks.survival_from_wire import sums_from_flat
from fedgraft.common.tasks.survival_head import SURVIVAL_HEAD, survival_of
from fedgraft.common.tasks.survival_sums import SurvivalSums, sums_of, zero
from fedgraft.common.tasks.survival_times import EVENT, count_intervals
from fedgraft.common.tasks.task import LabelledSource, Task

HAPPENED = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


def count_hazards(task: TaskSection) -> int:
    """Return how many intervals there are, as many as outputs of the head."""
    return len(survival_of(task).cuts)


def read_people(source: LabelledSource, task: TaskSection) -> np.ndarray:
    """Return intervals survived, and whether the event came in the next one, int64 `(n, 2)`.

    Raises:
        UserError: a time that is no number of at least 0, or an event that is neither 0 nor 1.
    """
    times = np.empty(len(source.labels))
    events = np.empty(len(source.labels), bool)
    for row, label in enumerate(source.labels):
        time, _, event = str(label).partition(BETWEEN)
        known = _read_time(time)
        happened = HAPPENED.get(event.strip().lower())
        if known is None:
            what = f"{time!r} is no time: how long a person was watched, from 0 on"
            raise UserError(what, where=source.place(row), remedy="write a number of 0 or more")
        if happened is None:
            what = f"{event!r} does not say whether the event happened"
            remedy = "write 1 where it did at that time, 0 where the person was last seen then"
            raise UserError(what, where=source.place(row), remedy=remedy)
        times[row] = known
        events[row] = happened
    return count_intervals(times, events, survival_of(task).cuts)


def _read_time(text: str) -> float | None:
    try:
        time = float(text)
    except ValueError:
        return None
    return time if math.isfinite(time) and time >= 0 else None


def strata_of(targets: np.ndarray, task: TaskSection) -> np.ndarray:
    """Return who had the event: splits and partitions deal those, and the others."""
    return targets[:, EVENT]


def count_people(targets: np.ndarray, task: TaskSection) -> np.ndarray:
    """Return how many were not seen to have the event, and how many were, `(2,)`."""
    return np.bincount(targets[:, EVENT], minlength=2)


def zero_of(task: TaskSection) -> SurvivalSums:
    """Return the sums of no predictions."""
    return zero(survival_of(task).cuts)


def sum_people(outputs: Tensor, targets: Tensor, task: TaskSection) -> SurvivalSums:
    """Return the sums of a batch of predictions. Raise `Refused` as `sums_of`."""
    return sums_of(outputs, targets, survival_of(task).cuts)


def read_survival_sums(flat: Mapping[str, Any], task: TaskSection) -> SurvivalSums:
    """Return sums from the wire. Raise `ValueError` for what no predictions could give."""
    return sums_from_flat(flat, survival_of(task).cuts)


def predict_curves(outputs: Tensor, task: TaskSection) -> Tensor:
    """Return the probability of no event up to each cut `(n, K)`."""
    return survival_curves(outputs)


def name_cuts(task: TaskSection) -> tuple[str, ...]:
    """Return what these probabilities are called."""
    return tuple(f"without event at {words}" for words in survival_of(task).words)


def describe_medians(told: Tensor, task: TaskSection, threshold: float | None) -> list[str]:
    """Return by when the event has come for one in two people like each."""
    section = survival_of(task)
    unit = f" {section.unit}" if section.unit else ""
    answers: list[str] = []
    for median in median_times(told, torch.tensor(section.cuts)).tolist():
        if math.isnan(median):
            answers.append(f"after {section.words[-1]}")
        else:
            answers.append(f"{median:.4g}{unit}")
    return answers


def describe(task: TaskSection) -> str:
    """Return the question for people."""
    section = survival_of(task)
    return f"to tell when an event comes, up to {section.words[-1]}"


SURVIVAL = Task(
    name="survival",
    takes="pooled",
    outputs=count_hazards,
    loss=mean_hazard_loss,
    losses=hazard_losses,
    zero=zero_of,
    sums=sum_people,
    read_sums=read_survival_sums,
    targets=read_people,
    strata=strata_of,
    counted=lambda task: ("no event seen", "event"),
    count=count_people,
    predict=predict_curves,
    columns=name_cuts,
    answer=describe_medians,
    answered="median",
    probes=lambda task: torch.tensor([[0, 1], [0, 0]]),
    describe=describe,
    closed_form=SURVIVAL_HEAD,
    reports="people by outcome, histograms of risks, squared survival by interval, losses",
)
