"""How much is it? A number within a range that everybody knows, squared error, sums that merge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.number_head import NUMBER_HEAD, number_of
from fedgraft.common.tasks.regression_sums import RegressionSums, sums_from_flat, sums_of, zero
from fedgraft.common.tasks.task import LabelledSource, Task

# even parts of the range that splits and partitions deal by
STRATA = 4


def squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs and targets `(n, 1)` → squared error of each example `(n,)`."""
    return (outputs - targets).square().flatten(1).mean(1)


def read_numbers(source: LabelledSource, task: TaskSection) -> np.ndarray:
    """Return each record's number in parts of the range, float32 `(n, 1)`: −1 is its low end, 1 its
    high end, and what lies beyond is taken for the end; NaN where the cell is empty.

    Raises:
        UserError: a label that is no number.
    """
    section = number_of(task)
    numbers = np.empty((len(source.labels), 1), np.float32)
    for row, label in enumerate(source.labels):
        if label == "":
            numbers[row] = math.nan
            continue
        number = _read_number(label)
        if number is None:
            what = f"{label!r} is no number"
            remedy = "write a number, or take the row out"
            raise UserError(what, where=source.place(row), remedy=remedy)
        numbers[row] = (number - section.middle) / section.reach
    return numbers.clip(-1, 1)


def _read_number(label: object) -> float | None:
    try:
        number = float(str(label))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def cut_range(targets: np.ndarray, task: TaskSection) -> np.ndarray:
    """Return in which even part of the range each number lies, int64 `(n,)`; −1 where there is no
    number: the record is left out.
    """
    numbers = targets[:, 0]
    known = ~np.isnan(numbers)
    parts = np.full(len(numbers), -1, np.int64)
    parts[known] = np.floor((numbers[known] + 1) * (STRATA / 2))
    return parts.clip(-1, STRATA - 1)


def name_parts(task: TaskSection) -> tuple[str, ...]:
    """Return what the even parts of the range are called."""
    section = number_of(task)
    width = 2 * section.reach / STRATA
    names = []
    for number in range(STRATA):
        low = section.low + number * width
        names.append(f"{low:g} to {low + width:g}")
    return tuple(names)


def count_parts(targets: np.ndarray, task: TaskSection) -> np.ndarray:
    """Return how many numbers lie in each even part of the range."""
    return np.bincount(cut_range(targets, task), minlength=STRATA)


def zero_of(task: TaskSection) -> RegressionSums:
    """Return the sums of no predictions."""
    return zero(number_of(task).reach)


def sum_numbers(outputs: Tensor, targets: Tensor, task: TaskSection) -> RegressionSums:
    """Return the sums of a batch of predictions. Raise `Refused` as `sums_of`."""
    return sums_of(outputs, targets, number_of(task).reach)


def read_sums(flat: Mapping[str, Any], task: TaskSection) -> RegressionSums:
    """Return sums from the wire. Raise `ValueError` for what no predictions could give."""
    return sums_from_flat(flat, number_of(task).reach)


def tell_numbers(outputs: Tensor, task: TaskSection) -> Tensor:
    """Return the numbers in their own unit, within the range, `(n, 1)`."""
    section = number_of(task)
    return section.middle + section.reach * outputs.clamp(-1, 1)


def describe(task: TaskSection) -> str:
    """Return the question for people."""
    section = number_of(task)
    unit = f" {section.unit}" if section.unit else ""
    return f"how much {task.target} is, from {section.low:g} to {section.high:g}{unit}"


REGRESSION = Task(
    name="regression",
    takes="pooled",
    outputs=lambda task: 1,
    loss=lambda outputs, targets: squared_errors(outputs, targets).mean(),
    losses=squared_errors,
    zero=zero_of,
    sums=sum_numbers,
    read_sums=read_sums,
    targets=read_numbers,
    strata=cut_range,
    counted=name_parts,
    count=count_parts,
    predict=tell_numbers,
    columns=lambda task: ("predicted",),
    answer=None,
    probes=lambda task: torch.tensor([[-0.5], [0.5]]),
    describe=describe,
    needs_each=False,
    closed_form=NUMBER_HEAD,
    reports="sums of errors and of their squares, how many answers are off by how much, losses",
)
