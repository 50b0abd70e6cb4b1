"""ε by privacy loss distributions: Gopi, Lee and Wutschitz, "Numerical composition of differential
privacy" (NeurIPS 2021); the upper end of its error bounds, about 0.01 above the truth.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from fedgraft.common.privacy.history import Row
from fedgraft.common.privacy.rdp_bound import bound_by_rdp

# the method's own error bound on ε
PRV_ERROR = 0.01
# more cells than these take seconds and hundreds of megabytes
PRV_CELLS = 1 << 22
PRV_ROWS = 64
ROUNDING = 2.0**-52


class Uncountable(Exception):
    """This history cannot be counted in this way; says why."""


@dataclass(frozen=True)
class Grid:
    """The grid on which privacy losses are composed.

        grid = choose_grid(rows, delta=1e-5)
        grid.cells

    Attributes:
        reach: it goes from −reach to reach.
        mesh: from one point to the next.
        slack: of δ, given to what lies beyond.
    """

    reach: float
    mesh: float
    slack: float

    @property
    def cells(self) -> float:
        """Return how many points it has."""
        return 2 * self.reach / self.mesh


def choose_grid(rows: tuple[Row, ...], delta: float) -> Grid:
    """Return how far the grid must reach (remark 5.6) and how fine it must be (theorem 5.5).

    Raises:
        Uncountable: too far and too fine.
    """
    steps = sum(count for _, _, count in rows)
    slack = delta / 1000
    tails = [PRV_ERROR, bound_by_rdp(rows, slack / 4)]
    for sigma, rate, _ in rows:
        single = ((sigma, rate, 1),)
        tails.append(bound_by_rdp(single, slack / (8 * steps)))
    mesh = PRV_ERROR / math.sqrt(steps * math.log(12 / slack) / 2)
    grid = Grid(3 + max(tails), mesh, slack)
    if not grid.cells <= PRV_CELLS:
        raise Uncountable("PRV would need too fine a grid")
    if grid.cells * ROUNDING > delta / 10:
        raise Uncountable("δ is so small that rounding would drown PRV")
    return grid


def bound_by_prv(rows: tuple[Row, ...], delta: float) -> float:
    """Return the upper end of the method's bounds on ε.

    Raises:
        Uncountable: it cannot be had for this history.
    """
    if len(rows) > PRV_ROWS:
        raise Uncountable(f"PRV takes too long for more than {PRV_ROWS} different steps")
    grid = choose_grid(rows, delta)
    try:
        upper = _compose(rows, delta, grid)
    except (ArithmeticError, ValueError, RuntimeError, IndexError, MemoryError) as error:
        raise Uncountable(f"PRV failed: {error}") from error
    if not 0 <= upper < math.inf:
        raise Uncountable("PRV found no ε")
    return upper


def _compose(rows: tuple[Row, ...], delta: float, grid: Grid) -> float:
    """Return the upper end of ε, from the privacy losses of the rows composed on a grid."""
    import numpy as np
    from opacus.accountants.analysis import prv

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        domain = prv.Domain.create_aligned(-grid.reach, grid.reach, grid.mesh)
        losses: list[prv.DiscretePRV] = []
        for sigma, rate, _ in rows:
            loss = prv.PoissonSubsampledGaussianPRV(rate, sigma)
            truncated = prv.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max)
            losses.append(prv.discretize(truncated, domain))
        composed = prv.compose_heterogeneous(losses, [steps for _, _, steps in rows])
        _, _, upper = composed.compute_epsilon(delta, grid.slack, PRV_ERROR)
        return float(upper)
