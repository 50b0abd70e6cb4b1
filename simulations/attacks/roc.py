"""How well a score tells members from others: ROC, area, and the hits at few false alarms, with
intervals.

An average hides a leak: an attack that names one patient in a hundred with certainty has an area of
about one half. So the true-positive rate at a small false-positive rate is told, too (Carlini et
al. 2022, "Membership inference attacks from first principles", IEEE S&P, section III).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgraft.common.errors import UserError

# false-positive rates at which the true-positive rate is told
FALSE_ALARMS = (0.001, 0.01)
# percentiles of the bootstrap between which an interval lies
INTERVAL = (2.5, 97.5)
# of a curve that is kept
_CURVE_POINTS = 400


@dataclass(frozen=True, eq=False)
class RocCurve:
    """True-positive rates over false-positive rates, from (0, 0) to (1, 1).

        curve = trace_roc(members=np.array([2.0, 3.0]), others=np.array([1.0, 2.0]))
        curve.area, curve.hits_at(0.01)

    Attributes:
        fpr: false-positive rates `(points,)`, rising.
        tpr: true-positive rates `(points,)`.
    """

    fpr: np.ndarray
    tpr: np.ndarray

    @property
    def area(self) -> float:
        """Return the area below, by trapezes: the probability that a member scores above another,
        ties counted half.
        """
        widths = np.diff(self.fpr)
        doubled_heights = self.tpr[1:] + self.tpr[:-1]
        return float(np.sum(widths * doubled_heights / 2))

    def hits_at(self, false_alarms: float) -> float:
        """Return the largest true-positive rate at a false-positive rate of at most `false_alarms`.
        Nothing is interpolated.
        """
        few_enough = self.fpr <= false_alarms + 1e-12
        return float(self.tpr[few_enough].max())

    def thin(self) -> RocCurve:
        """Return the curve with some 400 points at most: the ends of straight pieces, and of those
        the lowest ones all, the others thinned.
        """
        corners = self._corners()
        if len(corners) <= _CURVE_POINTS:
            return RocCurve(self.fpr[corners], self.tpr[corners])
        half = _CURVE_POINTS // 2
        last = len(corners) - 1
        lowest = np.arange(half)
        others = np.linspace(half, last, _CURVE_POINTS - half).round().astype(int)
        chosen = corners[np.concatenate([lowest, others])]
        return RocCurve(self.fpr[chosen], self.tpr[chosen])

    def _corners(self) -> np.ndarray:
        """Return the points at which the curve begins, turns and ends."""
        right = np.diff(self.fpr)
        up = np.diff(self.tpr)
        goes_straight = right[1:] * up[:-1] == right[:-1] * up[1:]
        is_corner = np.concatenate([[True], ~goes_straight, [True]])
        return np.flatnonzero(is_corner)


def trace_roc(members: np.ndarray, others: np.ndarray) -> RocCurve:
    """Return the curve through every threshold that a score has.

    Args:
        members: scores `(m,)` of members; the higher, the surer the attack is of membership.
        others: scores `(n,)` of non-members.

    Raises:
        UserError: one of them is empty, or a score is NaN.
    """
    scores = np.concatenate([members, others]).astype(np.float64)
    counts = [len(members), len(others)]
    if 0 in counts or np.isnan(scores).any():
        what = f"{counts[0]} members and {counts[1]} others, or a score that is no number"
        remedy = "attack a model that has both, and whose outputs are finite"
        raise UserError(what, remedy=remedy)
    order = np.argsort(-scores, kind="stable")
    members_first = np.repeat([1, 0], counts)
    is_member = members_first[order]

    # equal scores fall together
    falls = np.flatnonzero(np.diff(scores[order]))
    last_of_equals = np.append(falls, len(scores) - 1)
    hits = np.cumsum(is_member)[last_of_equals]
    alarms = np.cumsum(1 - is_member)[last_of_equals]

    fpr = np.append(0.0, alarms / len(others))
    tpr = np.append(0.0, hits / len(members))
    return RocCurve(fpr, tpr)


def summarize_scores(
    members: np.ndarray, others: np.ndarray, *, seed: int, draws: int = 1000
) -> dict[str, Any]:
    """Return what scores tell, as plain numbers, with 95 % bootstrap intervals (percentiles;
    members and others drawn apart).

    Below one false alarm in `others` a rate means: no false alarm at all.

    Returns:
        members, others (counts), auc, auc_interval, tpr (by false-positive rate, as text),
        tpr_interval, and roc: {fpr, tpr}, at most some 400 points.

    Raises:
        UserError: as `trace_roc`.
    """
    curve = trace_roc(members, others)
    rng = np.random.default_rng([seed, 0xB007])
    drawn = []
    for _ in range(draws):
        some_members = rng.choice(members, len(members))
        some_others = rng.choice(others, len(others))
        drawn.append(_measure(trace_roc(some_members, some_others)))
    edges = np.percentile(np.array(drawn), INTERVAL, axis=0)

    area, *hits = _measure(curve)
    area_interval, *hit_intervals = edges.T.tolist()
    rates = [f"{rate:g}" for rate in FALSE_ALARMS]
    tpr = dict(zip(rates, hits, strict=True))
    tpr_interval = dict(zip(rates, hit_intervals, strict=True))
    thinned = curve.thin()
    points = {"fpr": thinned.fpr.tolist(), "tpr": thinned.tpr.tolist()}
    return {
        "members": len(members),
        "others": len(others),
        "auc": area,
        "auc_interval": area_interval,
        "tpr": tpr,
        "tpr_interval": tpr_interval,
        "roc": points,
    }


def _measure(curve: RocCurve) -> list[float]:
    """Return the area, and the hits at each of `FALSE_ALARMS`."""
    hits = [curve.hits_at(rate) for rate in FALSE_ALARMS]
    return [curve.area, *hits]
