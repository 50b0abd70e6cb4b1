"""The closed form of a regression: ridge on the number itself."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fedgraft.common.plan.number_section import NumberSection
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.statistics.gram_sums import GramSums
from fedgraft.common.statistics.noisy_number import solve_number
from fedgraft.common.statistics.noisy_sums import NoisySums
from fedgraft.common.statistics.ridge import RidgeSolution
from fedgraft.common.tasks.closed_form import ClosedForm, Head, NoisyForm

# half of the range in steps of the targets: sums of integers are exact
STEPS = 2**16
HALF = 0.5**0.5


def round_numbers(targets: Tensor, task: TaskSection) -> np.ndarray:
    """Return numbers `(n, 1)` within −1 and 1 as integers, int64 `(n, 1)`."""
    return np.rint(targets.numpy().astype(np.float64) * STEPS).astype(np.int64)


def check_numbers(sums: GramSums, task: TaskSection) -> None:
    """Raise `ValueError` for sums of numbers that are not within the range."""
    records = sums.records
    total = abs(float(sums.targets[0]))
    squares = float(sums.squares[0])
    if total > records * STEPS or not 0 <= squares <= records * float(STEPS) ** 2:
        raise ValueError("sums of numbers out of their range")
    # to the last bit of float64
    if total**2 > records * squares * (1 + 1e-12):
        raise ValueError("sums of numbers, and of their squares, that no numbers have")


def head_of(solution: RidgeSolution, task: TaskSection, prior: str) -> Head:
    """Return the ridge head: one number in parts of the range."""
    weights, bias = solution.head()
    return weights / STEPS, bias / STEPS


def unit_of(section: NumberSection) -> float:
    """Return what one step of the targets is worth in the number's unit."""
    return section.reach / STEPS


# ── under differential privacy ────────────────────────────────────────────────────────────────────
def code_numbers(targets: Tensor, task: TaskSection, shares: str) -> np.ndarray:
    """Return each record's code, of norm 1 at most: the number, and 1, by √½, `(n, 2)`."""
    numbers = targets.numpy().astype(np.float64)
    return HALF * np.concatenate([numbers, np.ones_like(numbers)], axis=1)


def count_numbers(targets: Tensor, task: TaskSection, shares: str) -> np.ndarray:
    """Return what counts: how far a number is above the low end, and 1, by √½, `(n, 2)`."""
    numbers = targets.numpy().astype(np.float64)
    return HALF * np.concatenate([(1 + numbers) / 2, np.ones_like(numbers)], axis=1)


def solve_noisy(noisy: NoisySums, task: TaskSection, shares: str, prior: str) -> Head:
    """Return the head that noisy sums give."""
    return solve_number(noisy, HALF)


def number_of(task: TaskSection) -> NumberSection:
    """Return what the plan says of its number. Raise `ValueError` where it says nothing."""
    if task.number is None:
        raise ValueError(f"{task.kind} without task.number")
    return task.number


NUMBER_HEAD = ClosedForm(
    by="times the number that is predicted",
    counts="sums of these numbers and of their squares",
    columns=lambda task: 1,
    targets=round_numbers,
    check=check_numbers,
    head=head_of,
    noisy=NoisyForm(
        shape=lambda task, shares: (2, 2),
        codes=code_numbers,
        counted=count_numbers,
        head=solve_noisy,
    ),
    unit=lambda task: unit_of(number_of(task)),
)
