"""A privacy history: what was run, as rows of noisy steps.

A row (noise_multiplier, sample_rate, steps) is that many steps of the Poisson-subsampled Gaussian
mechanism, each on a batch that every unit entered by its own coin with probability sample_rate,
with Gaussian noise of standard deviation noise_multiplier × clipping norm on the sum. Rows may
differ in everything; their order does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from fedgraft.common.errors import UserError

# noise_multiplier, sample_rate, steps
Row = tuple[float, float, int]


def merge_rows(history: Iterable[Row]) -> tuple[Row, ...]:
    """Return the same history with equal rows as one, rows that spend nothing left out, sorted.

    Raises:
        UserError: a number out of its range.
    """
    total: dict[tuple[float, float], int] = {}
    for row in history:
        check_row(row)
        noise_multiplier, sample_rate, steps = row
        if steps and sample_rate and noise_multiplier < math.inf:
            key = (float(noise_multiplier), float(sample_rate))
            total[key] = total.get(key, 0) + int(steps)
    rows: list[Row] = []
    for (noise_multiplier, sample_rate), steps in sorted(total.items()):
        rows.append((noise_multiplier, sample_rate, steps))
    return tuple(rows)


def check_row(row: Row) -> None:
    """Raise `UserError` for a number out of its range."""
    noise_multiplier, sample_rate, steps = row
    in_range = noise_multiplier >= 0 and 0 <= sample_rate <= 1 and steps >= 0
    if not in_range or steps != int(steps):
        raise UserError(
            f"a row ({noise_multiplier}, {sample_rate}, {steps}) is no row of a history",
            remedy="noise multiplier ≥ 0, sample rate from 0 to 1, a whole number of steps ≥ 0",
        )
