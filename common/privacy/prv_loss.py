"""A privacy loss whose mean takes a fifth of the time, to the same bits.

Opacus integrates the distribution function over some twenty intervals. QUADPACK asks for one value
at a time, and NumPy takes as long for one as for hundreds. Where it asks first is known: at the 21
points of Gauss and Kronrod in each interval (Piessens et al., QUADPACK, 1983: qk21). They are
computed at once; any other value is computed when it is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from opacus.accountants.analysis.prv.prvs import TruncatedPrivacyRandomVariable

# of the rule on [−1, 1], those from 0 on
POINTS = np.array(
    [
        0.995657163025808080735527280689003,
        0.973906528517171720077964012084452,
        0.930157491355708226001207180059508,
        0.865063366688984510732096688423493,
        0.780817726586416897063717578345042,
        0.679409568299024406234327365114874,
        0.562757134668604683339000099272694,
        0.433395394129247190799265943165784,
        0.294392862701460198131126603103866,
        0.148874338981631210884826001129720,
        0.0,
    ]
)


class PrivacyLoss(TruncatedPrivacyRandomVariable):
    """Opacus's truncated privacy loss; it knows the values that its mean asks for."""

    _known: dict[float, Any] | None = None

    def cdf(self, t: Any) -> Any:
        """Return the distribution function at one point or at many."""
        if self._known is not None and isinstance(t, float):
            value = self._known.get(t)
            if value is not None:
                return value
        return super().cdf(t)

    def mean(self) -> float:
        """Return the mean."""
        points = list_points(self.t_min, self.t_max)
        values = super().cdf(points)
        self._known = dict(zip(points.tolist(), values, strict=True))
        try:
            return super().mean()
        finally:
            self._known = None


def list_points(low: float, high: float) -> np.ndarray:
    """Return where the distribution function is asked for first: `(n,)`."""
    ends = list_ends(low, high)
    middles = 0.5 * (ends[:-1] + ends[1:])
    halves = 0.5 * (ends[1:] - ends[:-1])
    shifts = np.outer(halves, POINTS)
    below = middles[:, None] - shifts
    above = middles[:, None] + shifts
    return np.concatenate([ends, below.ravel(), above.ravel()])


def list_ends(low: float, high: float) -> np.ndarray:
    """Return the ends of the intervals that Opacus integrates over, `(n,)`: finer towards 0."""
    lowest = int(np.log10(np.abs(low)))
    highest = int(np.log10(high))
    below = -np.logspace(lowest, -5, 10)
    above = np.logspace(-5, highest, 10)
    return np.concatenate([[low], below, [0.0], above, [high]])
