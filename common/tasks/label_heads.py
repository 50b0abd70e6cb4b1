"""The closed forms of questions of yes and no that share their features: many labels of a record,
and thresholds between grades.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from torch import Tensor

from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.statistics.binary_scores import solve_binary
from fedgraft.common.statistics.gram_sums import GramSums
from fedgraft.common.statistics.noisy_means import solve_counted
from fedgraft.common.statistics.noisy_sums import NoisySums
from fedgraft.common.statistics.ridge import RidgeSolution
from fedgraft.common.tasks.closed_form import ClosedForm, Head, NoisyForm

# ── many labels ───────────────────────────────────────────────────────────────────────────────────


def mark_labels(targets: Tensor, task: TaskSection) -> np.ndarray:
    """Return which labels are known and which are there, int64 `(n, 2 k)`: known, then yes."""
    values = targets.numpy()
    return np.concatenate([values >= 0, values == 1], axis=1).astype(np.int64)


def check_labels(sums: GramSums, task: TaskSection) -> None:
    """Raise `ValueError` for counts of labels that no records have."""
    known, there = np.split(sums.targets, 2)
    if (there < 0).any() or (there > known).any() or (known > sums.records).any():
        raise ValueError("counts of labels that no records have")
    if (sums.squares != sums.targets).any():
        raise ValueError("labels that are neither there nor not")


def solve_labels(solution: RidgeSolution, task: TaskSection, prior: str) -> Head:
    """Return a head whose sigmoid is the probability of each label."""
    labels = len(task.classes)
    return solve_binary(solution, np.arange(labels), labels + np.arange(labels), prior)


def code_labels(targets: Tensor, task: TaskSection, shares: str) -> np.ndarray:
    """Return each record's code, norm 1 at most: by √(1/k) in the column of each known answer,
    `(n, 2 k)`: no, then yes.
    """
    values = targets.numpy()
    answers = np.concatenate([values == 0, values == 1], axis=1)
    return answers / math.sqrt(values.shape[1])


def solve_noisy_labels(noisy: NoisySums, task: TaskSection, shares: str, prior: str) -> Head:
    """Return the head that noisy sums give: each label by itself, under √k times the noise."""
    labels = len(task.classes)
    scale = math.sqrt(labels)
    weights = []
    bias = []
    for label in range(labels):
        columns = [label, labels + label]
        own = NoisySums(
            noisy.sums[:, columns] * scale,
            noisy.counts[columns] * scale,
            variance=noisy.variance * labels,
        )
        of_both, shifts = solve_counted(own, prior)
        weights.append(of_both[1] - of_both[0])
        bias.append(shifts[1] - shifts[0])
    return np.stack(weights), np.array(bias)


LABEL_HEAD = ClosedForm(
    by="by label, known and there",
    counts="counts of labels",
    columns=lambda task: 2 * len(task.classes),
    targets=mark_labels,
    check=check_labels,
    head=solve_labels,
    noisy=NoisyForm(
        shape=lambda task, shares: (2 * len(task.classes), 2 * len(task.classes)),
        codes=code_labels,
        counted=code_labels,
        head=solve_noisy_labels,
    ),
)


# ── grades ────────────────────────────────────────────────────────────────────────────────────────
def mark_above(targets: Tensor, task: TaskSection) -> np.ndarray:
    """Return which thresholds each grade is above, int64 `(n, classes − 1)`."""
    thresholds = np.arange(len(task.classes) - 1)
    return (targets.numpy()[:, None] > thresholds).astype(np.int64)


def check_above(sums: GramSums, task: TaskSection) -> None:
    """Raise `ValueError` for counts of grades that no records have."""
    above = sums.targets
    if (np.diff(above) > 0).any() or above[-1] < 0 or above[0] > sums.records:
        raise ValueError("counts of grades that no records have")
    if (sums.squares != above).any():
        raise ValueError("grades that are neither above a threshold nor below")


def solve_grades(solution: RidgeSolution, task: TaskSection, prior: str) -> Head:
    """Return a head whose sigmoid is the probability that a grade is above each threshold."""
    return solve_binary(solution, None, np.arange(len(task.classes) - 1), prior)


def code_grades(targets: Tensor, task: TaskSection, shares: str) -> np.ndarray:
    """Return 1 in the column of each record's grade, `(n, classes)`."""
    return np.eye(len(task.classes))[targets.numpy()]


def solve_noisy_grades(noisy: NoisySums, task: TaskSection, shares: str, prior: str) -> Head:
    """Return the head that noisy sums by grade give: each threshold parts those below and above."""
    grades = len(task.classes)
    weights = []
    bias = []
    for threshold in range(1, grades):
        sides = np.zeros((grades, 2), np.int64)
        sides[:threshold, 0] = 1
        sides[threshold:, 1] = 1
        # the two sides have noise of other variances; their mean stands for both
        own = replace(
            noisy,
            sums=noisy.sums @ sides,
            counts=noisy.counts @ sides,
            variance=noisy.variance * grades / 2,
            products=noisy.products[:0],
        )
        of_both, shifts = solve_counted(own, prior)
        weights.append(of_both[1] - of_both[0])
        bias.append(shifts[1] - shifts[0])
    return np.stack(weights), np.array(bias)


GRADE_HEAD = ClosedForm(
    by="by grade",
    counts="counts of grades",
    columns=lambda task: len(task.classes) - 1,
    targets=mark_above,
    check=check_above,
    head=solve_grades,
    noisy=NoisyForm(
        shape=lambda task, shares: (len(task.classes), len(task.classes)),
        codes=code_grades,
        counted=code_grades,
        head=solve_noisy_grades,
    ),
)
