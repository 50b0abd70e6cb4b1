"""Which grade is it? Classes in an order, told apart by thresholds between them.

One logit a threshold, that of lying above it (Frank and Hall 2001, "A simple approach to ordinal
classification", section 2), with weights of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.classification import CLASSIFICATION, count_labels, probability_columns
from fedgraft.common.tasks.label_heads import GRADE_HEAD
from fedgraft.common.tasks.ordinal_sums import (
    OrdinalSums,
    answer_grades,
    grade_probabilities,
    sums_from_flat,
    sums_of,
    threshold_losses,
    zero,
)
from fedgraft.common.tasks.task import Task


def name_grades(told: Tensor, task: TaskSection, threshold: float | None) -> list[str]:
    """Return the median grade of each record."""
    return [task.classes[grade] for grade in answer_grades(told).tolist()]


def zero_of(task: TaskSection) -> OrdinalSums:
    """Return the sums of no predictions."""
    return zero(len(task.classes))


def read_sums(flat: Mapping[str, Any], task: TaskSection) -> OrdinalSums:
    """Return sums from the wire. Raise `ValueError` for what no predictions could give."""
    return sums_from_flat(flat, len(task.classes))


ORDINAL = Task(
    name="ordinal",
    takes="pooled",
    outputs=lambda task: len(task.classes) - 1,
    loss=lambda outputs, targets: threshold_losses(outputs, targets).mean(),
    losses=threshold_losses,
    zero=zero_of,
    sums=lambda outputs, targets, task: sums_of(outputs, targets),
    read_sums=read_sums,
    targets=CLASSIFICATION.targets,
    strata=CLASSIFICATION.strata,
    counted=lambda task: task.classes,
    count=count_labels,
    predict=lambda outputs, task: grade_probabilities(outputs),
    columns=probability_columns,
    answer=name_grades,
    probes=CLASSIFICATION.probes,
    describe=lambda task: f"which grade it is, in this order: {', '.join(task.classes)}",
    closed_form=GRADE_HEAD,
    reports="answers by true and given grade, losses",
)
