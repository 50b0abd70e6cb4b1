"""Ridge regression over two groups of features whose weights have variances of their own.

Hundreds of an image's features beside a dozen of a table's: one constant for both, large enough for
the many, would shrink the few to nothing. By how much the second group may weigh more is chosen by
marginal likelihood from the same sums (MacKay 1992, "Bayesian interpolation", section 4).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedgraft.common.statistics.ridge import RidgeSolution, StandardSums, solve_ridge

# variances of the second group's weights, those of the first being 1
VARIANCES = (1.0, 4.0, 16.0, 64.0, 256.0)


def solve_two_groups(sums: StandardSums, second: int) -> RidgeSolution:
    """Return the ridge solution of the largest evidence, on one thread: the same bits for the same
    sums.

    Args:
        second: features of the second group, the last ones.
    """
    solutions = [solve_ridge(weigh(sums, second, variance)) for variance in VARIANCES]
    evidences = [solution.evidence for solution in solutions]
    return solutions[int(np.argmax(evidences))]


def weigh(sums: StandardSums, second: int, variance: float) -> StandardSums:
    """Return sums as if the last features had this variance, and not 1."""
    scale = np.ones(len(sums.mean))
    scale[len(scale) - second :] = np.sqrt(variance)
    return replace(
        sums,
        deviation=sums.deviation / scale,
        gram=sums.gram * np.outer(scale, scale),
        cross=sums.cross * scale[:, None],
    )
