"""Which of these classes is it? One label a record, cross-entropy, counts that merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.class_head import CLASS_HEAD
from fedgraft.common.tasks.classification_sums import ClassificationSums, sums_of, zero
from fedgraft.common.tasks.labels import Label, list_labels, plain_label
from fedgraft.common.tasks.operating_point import answer_from, choose_point
from fedgraft.common.tasks.sums_from_wire import sums_from_flat
from fedgraft.common.tasks.task import LabelledSource, Task, Threshold


def count_classes(task: TaskSection) -> int:
    """Return how many classes there are, as many as outputs of the head."""
    return len(task.classes)


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
    counts = torch.bincount(labels, minlength=count_classes(task))
    return (counts / max(len(labels), 1)).log()


def class_numbers(source: LabelledSource, task: TaskSection) -> np.ndarray:
    """Return the class of each record, int64 `(n,)`; −1 where the plan states its labels and this
    record's is not among them.

    Raises:
        UserError: the plan states no labels, and one is not a class's number or name.
    """
    known = known_labels(task)
    numbers = np.array([known.get(label, -1) for label in source.labels], np.int64)
    unknown = numbers < 0
    if task.labels is None and unknown.any():
        row = int(np.argmax(unknown))
        raise unknown_label(source, row, task)
    return numbers


def unknown_label(source: LabelledSource, row: int, task: TaskSection) -> UserError:
    """Return what to say of a record's label that is no class's number or name."""
    label = source.labels[row]
    labels = list_labels(source.labels)
    classes = list_labels(task.classes)
    return UserError(
        f"label {label!r} is not one of the plan's {count_classes(task)} classes",
        where=source.place(row),
        remedy=(
            f"the data has labels {labels}, the plan classes {classes}; name them all in"
            " task.classes, or list in task.labels the ones to use"
        ),
    )


def known_labels(task: TaskSection) -> dict[Label, int]:
    """Return the class that each label in the data stands for.

    Where classes are called by numbers, such as grades 1, 2 and 3, a number is a class's name and
    not its place.
    """
    known: dict[Label, int] = {}
    if task.labels is not None:
        for number, label in enumerate(task.labels):
            known[plain_label(label)] = number
        return known
    numbers = range(count_classes(task))
    names = [plain_label(name) for name in task.classes]
    if not any(isinstance(name, int) for name in names):
        known.update(zip(numbers, numbers, strict=True))
    known.update(zip(names, numbers, strict=True))
    return known


def read_classification_sums(flat: Mapping[str, Any], task: TaskSection) -> ClassificationSums:
    """Return sums from the wire. Raise `ValueError` for what no predictions could give."""
    return sums_from_flat(flat, count_classes(task))


def zero_of(task: TaskSection) -> ClassificationSums:
    """Return the sums of no predictions."""
    return zero(count_classes(task))


def class_sums(logits: Tensor, labels: Tensor, task: TaskSection) -> ClassificationSums:
    """Return the sums of a batch of predictions. Raise `Refused` as `sums_of`."""
    return sums_of(logits, labels)


def strata_of(labels: np.ndarray, task: TaskSection) -> np.ndarray:
    """Return the classes themselves: splits and partitions deal each of them."""
    return labels


def count_labels(labels: np.ndarray, task: TaskSection) -> np.ndarray:
    """Return how many records each class has, `(classes,)`."""
    return np.bincount(labels, minlength=count_classes(task))


def probabilities(logits: Tensor, task: TaskSection) -> Tensor:
    """Return the probability of each class, `(n, classes)`."""
    return logits.softmax(dim=1)


def probability_columns(task: TaskSection) -> tuple[str, ...]:
    """Return what probabilities of classes are called where they are written."""
    return tuple(f"p_{name}" for name in task.classes)


def name_classes(told: Tensor, task: TaskSection, threshold: float | None) -> list[str]:
    """Return the class that is answered of each record: the likeliest, or of two the second one
    from a threshold on.
    """
    numbers = told.argmax(1)
    if threshold is not None:
        numbers = (told[:, 1] >= threshold).long()
    return [task.classes[number] for number in numbers.tolist()]


def describe(task: TaskSection) -> str:
    """Return the question for people."""
    return f"to tell apart: {', '.join(task.classes)}"


CLASSIFICATION = Task(
    name="classification",
    takes="pooled",
    outputs=count_classes,
    loss=F.cross_entropy,
    losses=cross_entropies,
    zero=zero_of,
    sums=class_sums,
    read_sums=read_classification_sums,
    targets=class_numbers,
    strata=strata_of,
    counted=lambda task: task.classes,
    count=count_labels,
    predict=probabilities,
    columns=probability_columns,
    answer=name_classes,
    probes=lambda task: torch.tensor([0, 1]),
    describe=describe,
    balance=log_shares,
    operating_point=Threshold(choose_point, answer_from),
    closed_form=CLASS_HEAD,
)
