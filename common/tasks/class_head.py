"""The closed form of a classification: ridge on one-hot targets, then Gaussian classes."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.statistics.class_means import solve_means
from fedgraft.common.statistics.class_scores import describe_scores, discriminant
from fedgraft.common.statistics.gram_sums import GramSums
from fedgraft.common.statistics.noisy_means import solve_counted, solve_equal
from fedgraft.common.statistics.noisy_products import solve_products
from fedgraft.common.statistics.noisy_sums import NoisySums, simplex
from fedgraft.common.statistics.ridge import RidgeSolution
from fedgraft.common.tasks.closed_form import ClosedForm, Head, NoisyForm


def one_hot(labels: Tensor, task: TaskSection) -> np.ndarray:
    """Return 1 in the column of each record's class, int64 `(n, classes)`."""
    return np.eye(len(task.classes), dtype=np.int64)[labels.numpy()]


def check_counts(sums: GramSums, task: TaskSection) -> None:
    """Raise `ValueError` where classes are not counted once for every record."""
    counts = sums.targets
    if (counts < 0).any() or int(counts.sum()) != sums.records or (sums.squares != counts).any():
        raise ValueError("counts of classes that are not those of its records")
    if (sums.cross.sum(1) != sums.total).any():
        raise ValueError("sums of the classes that do not add up to the sum of all records")


def solve_classes(solution: RidgeSolution, task: TaskSection, prior: str) -> Head:
    """Return a head whose softmax is the probability of each class.

    Args:
        prior: "shares": of the classes among the records; "equal": none is more frequent.
    """
    classes = describe_scores(solution)
    shares = classes.counts / classes.counts.sum()
    if prior == "equal":
        shares = np.full(len(shares), 1 / len(shares))
    onto_logits, shift = discriminant(classes, shares)
    weights, bias = solution.head()
    return onto_logits @ weights, onto_logits @ bias + shift


# ── under differential privacy ────────────────────────────────────────────────────────────────────
def shape_of_noisy(task: TaskSection, shares: str) -> tuple[int, int]:
    """Return codes and counts: by class, or, where classes are equal, of all records together."""
    classes = len(task.classes)
    if shares == "equal":
        return classes - 1, 1
    return classes, classes


def code_classes(labels: Tensor, task: TaskSection, shares: str) -> np.ndarray:
    """Return each record's code `(n, codes)`: its class, or where equal classes lie apart."""
    codes = np.eye(len(task.classes))
    if shares == "equal":
        codes = simplex(len(task.classes))
    return codes[labels.numpy()]


def count_records(labels: Tensor, task: TaskSection, shares: str) -> np.ndarray:
    """Return 1 in the column of the count that a record is in, `(n, counts)`."""
    if shares == "equal":
        return np.ones((len(labels), 1))
    return np.eye(len(task.classes))[labels.numpy()]


def solve_noisy(noisy: NoisySums, task: TaskSection, shares: str, prior: str) -> Head:
    """Return the head that noisy sums give, and products, where they were released."""
    if noisy.products.size:
        return solve_products(noisy, prior)
    if shares == "equal":
        return solve_equal(noisy, len(task.classes))
    return solve_counted(noisy, prior)


NOISY = NoisyForm(shape=shape_of_noisy, codes=code_classes, counted=count_records, head=solve_noisy)
CLASS_HEAD = ClosedForm(
    columns=lambda task: len(task.classes),
    targets=one_hot,
    check=check_counts,
    head=solve_classes,
    noisy=NOISY,
    means=solve_means,
)
