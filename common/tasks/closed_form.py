"""What a question says of itself where its head is solved from sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.statistics.gram_sums import GramSums
from fedgraft.common.statistics.noisy_sums import NoisySums
from fedgraft.common.statistics.ridge import RidgeSolution

# weights (outputs, d) and bias (outputs,)
Head = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class NoisyForm:
    """What a node sums of features of norm 1 before it adds noise, see `noisy_sums.py`.

    `shares` is the plan's `closed_form.shares`: "counted", or "equal" where the plan declares it.

    Attributes:
        shape: (section, shares) → how many codes and how many counts there are.
        codes: (targets, section, shares) → each record's code, of norm 1 at most, `(n, codes)`.
        counted: (targets, section, shares) → in which count each record is, `(n, counts)`.
        head: (sums, section, shares, prior) → the head on features of norm 1.
        parts: (targets `(n, places)`) → the share of each place in its record, not negative, 1 a
            record at most, `(n, places)`; codes and counts are then 1 in one column. None: a record
            is one row of the sums.
    """

    shape: Callable[[TaskSection, str], tuple[int, int]]
    codes: Callable[[Tensor, TaskSection, str], np.ndarray]
    counted: Callable[[Tensor, TaskSection, str], np.ndarray]
    head: Callable[[NoisySums, TaskSection, str, str], Head]
    parts: Callable[[Tensor], np.ndarray] | None = None


@dataclass(frozen=True)
class ClosedForm:
    """The sums of one kind of question, and the head that is solved from them.

        closed = TASKS["classification"].closed_form
        sums = sum_records(features, closed.targets(labels, section), bits)
        weights, bias = closed.head(solve_ridge(standardise(sums, unit)), section, "shares")

    Attributes:
        columns: how many targets a record has.
        targets: (each record's target, section) → integers that are regressed on, `(n, columns)`.
        check: (sums, section) → nothing; raises `ValueError` for sums of targets that no records
            have.
        head: (solution, section, prior) → the head on features as they are.
        noisy: the same under differential privacy; None: there is none.
        means: (sums, unit of a feature, prior) → the head of class means; None: there are none.
        by: how features are summed beside themselves, in words.
        counts: what is counted beside them, in words.
        unit: (section) → what one step of the targets is worth where a record's score is told.
    """

    columns: Callable[[TaskSection], int]
    targets: Callable[[Tensor, TaskSection], np.ndarray]
    check: Callable[[GramSums, TaskSection], None]
    head: Callable[[RidgeSolution, TaskSection, str], Head]
    noisy: NoisyForm | None = None
    means: Callable[[GramSums, float, str], Head] | None = None
    by: str = "by class"
    counts: str = "counts of classes"
    unit: Callable[[TaskSection], float] = lambda _: 1.0
