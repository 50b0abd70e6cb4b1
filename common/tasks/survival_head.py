"""The closed form of survival: sums by outcome, one Gram matrix, one round."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fedgraft.common.plan.survival_section import SurvivalSection
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.statistics.gram_sums import GramSums
from fedgraft.common.statistics.hazard_direction import solve_proportional
from fedgraft.common.statistics.noisy_hazards import solve_noisy_hazards
from fedgraft.common.statistics.noisy_sums import NoisySums
from fedgraft.common.statistics.ridge import RidgeSolution
from fedgraft.common.tasks.closed_form import ClosedForm, Head, NoisyForm
from fedgraft.common.tasks.life_table import LifeTable
from fedgraft.common.tasks.survival_times import count_outcomes, number_outcomes


def mark_outcomes(targets: Tensor, task: TaskSection) -> np.ndarray:
    """Return 1 in the column of each person's outcome, int64 `(n, 2K + 1)`."""
    return np.eye(outcomes_of(task), dtype=np.int64)[number_outcomes(targets.numpy())]


def check_outcomes(sums: GramSums, task: TaskSection) -> None:
    """Raise `ValueError` where outcomes are not counted once for every person."""
    counts = sums.targets
    if (counts < 0).any() or int(counts.sum()) != sums.records or (sums.squares != counts).any():
        raise ValueError("counts of outcomes that are not those of its people")
    if (sums.cross.sum(1) != sums.total).any():
        raise ValueError("sums by outcome that do not add up to the sum of all people")


def solve_hazards(solution: RidgeSolution, task: TaskSection, prior: str) -> Head:
    """Return a head whose outputs are the logits of each interval's hazard."""
    sums = solution.sums
    table = LifeTable(np.rint(sums.records * sums.target_mean).astype(np.int64))
    return solve_proportional(solution, table.events, table.reached[1:])


# ── under differential privacy ────────────────────────────────────────────────────────────────────
def code_outcomes(targets: Tensor, task: TaskSection, shares: str) -> np.ndarray:
    """Return each person's code, of norm 1, and what counts: 1 in the column of their outcome,
    `(n, 2K + 1)`.
    """
    return mark_outcomes(targets, task).astype(np.float64)


def solve_noisy(noisy: NoisySums, task: TaskSection, shares: str, prior: str) -> Head:
    """Return the head that noisy sums give."""
    return solve_noisy_hazards(noisy)


def survival_of(task: TaskSection) -> SurvivalSection:
    """Return what the plan says of time. Raise `ValueError` where it says nothing."""
    if task.survival is None:
        raise ValueError(f"{task.kind} without task.survival")
    return task.survival


def outcomes_of(task: TaskSection) -> int:
    """Return how many outcomes a person can have under a plan."""
    return count_outcomes(len(survival_of(task).cuts))


SURVIVAL_HEAD = ClosedForm(
    by="by outcome: interval, and whether the event came",
    counts="counts of outcomes",
    columns=outcomes_of,
    targets=mark_outcomes,
    check=check_outcomes,
    head=solve_hazards,
    noisy=NoisyForm(
        shape=lambda task, shares: (outcomes_of(task), outcomes_of(task)),
        codes=code_outcomes,
        counted=code_outcomes,
        head=solve_noisy,
    ),
)
