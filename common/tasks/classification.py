"""Which of these classes is it? One label a record, cross-entropy, counts that merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.classification_sums import ClassificationSums, sums_of, zero
from fedgraft.common.tasks.task import Label, LabelledSource, Task

MOST_SHOWN = 12  # labels in one message


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits `(n, classes)`, labels `(n,)` → cross-entropy of each example `(n,)`, nats."""
    return F.cross_entropy(logits, labels, reduction="none")


def log_shares(labels: Tensor, task: TaskSection) -> Tensor:
    """Return the logarithm of each class's share of a node's own labels, `(classes,)`; −∞ for a
    class that it does not have.

    Added to the logits inside the loss, it makes them learn log p(x | class) and not
    log p(class | x): the node's own shares, which differ from the next one's, stay out of the
    shared model (balanced softmax: Ren et al. 2020, eq. 4; at federated nodes: Zhang et al. 2022,
    "Federated learning with label distribution skew via logits calibration"). The model then takes
    all classes for equally frequent. A class that a node does not have is not learnt to be absent.
    """
    counts = torch.bincount(labels, minlength=len(task.classes))
    return (counts / max(len(labels), 1)).log()


def class_numbers(source: LabelledSource, task: TaskSection) -> np.ndarray:
    """Return the class of each record, int64 `(n,)`; −1 where the plan states its labels and this
    record's is not among them.

    Raises:
        UserError: the plan states no labels, and one is not a class's number or name.
    """
    numbers_of = known_labels(task)
    numbers = np.array([numbers_of.get(label, -1) for label in source.labels], np.int64)
    if task.labels is None and (numbers < 0).any():
        row = int(np.argmax(numbers < 0))
        have = list_labels(source.labels)
        classes = list_labels(task.classes)
        raise UserError(
            f"label {source.labels[row]!r} is not one of the plan's {len(task.classes)} classes",
            where=source.place(row),
            remedy=(
                f"the data has labels {have}, the plan classes {classes}; "
                "name them all in task.classes, or list in task.labels the ones to use"
            ),
        )
    return numbers


def known_labels(task: TaskSection) -> dict[Label, int]:
    """Return the class that each label in the data stands for."""
    if task.labels is not None:
        return {plain_label(label): number for number, label in enumerate(task.labels)}
    known: dict[Label, int] = {number: number for number in range(len(task.classes))}
    for number, name in enumerate(task.classes):
        known[name] = number
    return known


def plain_label(value: object) -> Label:
    """Return a label as data states it: whole numbers (`1`, `1.0`, `"1"`) as int, else as text."""
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return text
    if number.is_integer():
        return int(number)
    return text


def list_labels(values: Sequence[Label]) -> str:
    """Return a few distinct labels, for a message."""
    distinct = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    listed = ", ".join(str(value) for value in distinct[:MOST_SHOWN])
    if len(distinct) > MOST_SHOWN:
        return f"{listed}, …"
    return listed


def read_classification_sums(flat: Mapping[str, Any], task: TaskSection) -> ClassificationSums:
    """Return sums from the wire. Raise `ValueError` for what no predictions could give."""
    return ClassificationSums.from_flat(flat, len(task.classes))


CLASSIFICATION = Task(
    name="classification",
    takes="pooled",
    outputs=lambda task: len(task.classes),
    loss=F.cross_entropy,
    losses=cross_entropies,
    balance=log_shares,
    zero=lambda task: zero(len(task.classes)),
    sums=sums_of,
    read_sums=read_classification_sums,
    targets=class_numbers,
    strata=lambda targets: targets,
    predict=lambda logits: logits.softmax(dim=1),
    columns=lambda task: task.classes,
    describe=lambda task: ", ".join(task.classes),
)
