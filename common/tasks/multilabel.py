"""Which of these does it have? Any number of labels a record, some perhaps not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.label_heads import LABEL_HEAD
from fedgraft.common.tasks.labels import BETWEEN, Label
from fedgraft.common.tasks.multilabel_sums import (
    MultilabelSums,
    label_losses,
    sums_from_flat,
    sums_of,
    zero,
)
from fedgraft.common.tasks.task import LabelledSource, Task

UNKNOWN_LABEL = -1
# what a cell of a column of its own may say; anything below 0, as in CheXpert, is not known
WORDS = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "yes": 1, "no": 0, "true": 1, "false": 0}
UNKNOWN = ("", "-1", "-1.0", "nan", "?")
# of a list of names: that there is none
NONE = ("none", "no finding", "-")


def read_labels(source: LabelledSource, task: TaskSection) -> np.ndarray:
    """Return which labels each record has, int64 `(n, k)`: 1, 0, or −1 where that is not known.

    A label is a cell of `0`, `1` or nothing for each of the plan's columns (`task.targets`), or the
    names of those that are there with `|` between them.

    Raises:
        UserError: a name that is none of the plan's, or a cell that is neither 0, 1 nor empty.
    """
    found = np.empty((len(source.labels), len(task.classes)), np.int64)
    known: dict[Label, Sequence[int]] = {}
    for row, label in enumerate(source.labels):
        if label not in known:
            known[label] = _read_one(label, task, source.place(row))
        found[row] = known[label]
    return found


def _read_one(label: Label, task: TaskSection, where: str) -> list[int]:
    parts = [part.strip() for part in str(label).split(BETWEEN)]
    if task.findings:
        return _apply_rules(parts, task, where)
    values = [_read_cell(part) for part in parts]
    if len(parts) == len(task.classes) and None not in values:
        return [value for value in values if value is not None]
    if len(task.targets) > 1:
        wrong = next(part for part, value in zip(parts, values, strict=True) if value is None)
        what = f"{wrong!r} among the columns of labels"
        remedy = "write 1, 0, or nothing where it is not known"
        raise UserError(what, where=where, remedy=remedy)
    return _read_names(parts, task, where)


def _apply_rules(cells: Sequence[str], task: TaskSection, where: str) -> list[int]:
    """Return whether each number makes its finding; −1 where it is missing."""
    found = []
    for cell, finding in zip(cells, task.findings, strict=True):
        if not cell:
            found.append(UNKNOWN_LABEL)
            continue
        try:
            found.append(finding.read(float(cell)))
        except ValueError:
            what = f"column {finding.column!r}: {cell!r} is no number"
            raise UserError(what, where=where, remedy="write a number, or nothing") from None
    return found


def _read_cell(cell: str) -> int | None:
    """Return 1, 0, or −1 where a cell says that it is not known; None for any other."""
    if cell.lower() in UNKNOWN:
        return UNKNOWN_LABEL
    return WORDS.get(cell.lower())


def _read_names(names: Sequence[str], task: TaskSection, where: str) -> list[int]:
    numbers = {str(name): number for number, name in enumerate(task.labels or task.classes)}
    found = [0] * len(task.classes)
    for name in names:
        if name.lower() in NONE:
            continue
        if name not in numbers:
            raise UserError(
                f"label {name!r} is none of the plan's",
                where=where,
                remedy=f"write some of {', '.join(numbers)} with {BETWEEN!r} between, or none",
            )
        found[numbers[name]] = 1
    return found


def find_rarest(targets: np.ndarray, task: TaskSection) -> np.ndarray:
    """Return of each record the rarest label that it has, counted from 1; 0: it has none; −1: none
    of its labels is known. Splits and partitions deal by it.
    """
    there = targets == 1
    by_rarity = np.argsort(there.sum(0), kind="stable")
    strata = np.zeros(len(targets), np.int64)
    for label in by_rarity[::-1].tolist():
        strata[there[:, label]] = label + 1
    strata[(targets < 0).all(1)] = -1
    return strata


def count_labels(targets: np.ndarray, task: TaskSection) -> np.ndarray:
    """Return how many records have each label, `(k,)`."""
    return (targets == 1).sum(0)


def name_labels(told: Tensor, task: TaskSection, threshold: float | None) -> list[str]:
    """Return the labels of each record that are likelier than not, with `|` between them."""
    answers = []
    for row in (told >= 0.5).tolist():
        there = [name for name, is_there in zip(task.classes, row, strict=True) if is_there]
        answers.append(BETWEEN.join(there) or NONE[0])
    return answers


def describe(task: TaskSection) -> str:
    """Return the question for people, with the rules where labels follow from some."""
    if not task.findings:
        return f"which of these a record has: {', '.join(task.classes)}"
    rules = [f"{finding.name} ({finding.rule})" for finding in task.findings]
    return f"which of these a record has: {', '.join(rules)}"


def zero_of(task: TaskSection) -> MultilabelSums:
    """Return the sums of no predictions."""
    return zero(len(task.classes))


def read_sums(flat: Mapping[str, Any], task: TaskSection) -> MultilabelSums:
    """Return sums from the wire. Raise `ValueError` for what no predictions could give."""
    return sums_from_flat(flat, len(task.classes))


MULTILABEL = Task(
    name="multilabel",
    takes="pooled",
    outputs=lambda task: len(task.classes),
    loss=lambda outputs, targets: label_losses(outputs, targets).mean(),
    losses=label_losses,
    zero=zero_of,
    sums=lambda outputs, targets, task: sums_of(outputs, targets),
    read_sums=read_sums,
    targets=read_labels,
    strata=find_rarest,
    counted=lambda task: task.classes,
    count=count_labels,
    predict=lambda outputs, task: outputs.sigmoid(),
    columns=lambda task: tuple(f"p_{name}" for name in task.classes),
    answer=name_labels,
    answered="labels",
    probes=lambda task: torch.tensor([[0], [1]]).expand(2, len(task.classes)),
    describe=describe,
    parts=MultilabelSums.by_label,
    closed_form=LABEL_HEAD,
    reports="histograms of scores by label, losses",
)
