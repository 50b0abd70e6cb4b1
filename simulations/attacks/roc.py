"""How well a score tells members from others: ROC, area, and the hits at few false alarms, with
intervals.

An average hides a leak: an attack that names one patient in a hundred with certainty has an area of
about one half. So the true-positive rate at a small false-positive rate is told, too (Carlini et
al. 2022, "Membership inference attacks from first principles", IEEE S&P, section III).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedgraft.common.errors import UserError

FALSE_ALARMS = (0.001, 0.01)  # false-positive rates at which the true-positive rate is told
_CURVE_POINTS = 400  # of a curve that is kept


def roc(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False- and true-positive rates, from (0, 0) to (1, 1), at every threshold that a score has.

    Args:
        members: scores `(m,)` of members; the higher, the surer the attack is of membership.
        others: scores `(n,)` of non-members.

    Raises:
        UserError: one of them is empty, or a score is NaN.
    """
    scores = np.concatenate([members, others]).astype(np.float64)
    if not len(members) or not len(others) or np.isnan(scores).any():
        raise UserError(
            f"{len(members)} members and {len(others)} others, or a score that is no number",
            remedy="attack a model that has both, and whose outputs are finite",
        )
    is_member = np.repeat([1, 0], [len(members), len(others)])
    order = np.argsort(-scores, kind="stable")
    last = np.r_[
        np.flatnonzero(np.diff(scores[order])), len(scores) - 1
    ]  # equal scores fall together
    hits, alarms = np.cumsum(is_member[order])[last], np.cumsum(1 - is_member[order])[last]
    return np.r_[0.0, alarms / len(others)], np.r_[0.0, hits / len(members)]


def area(fpr: np.ndarray, tpr: np.ndarray) -> float:
    """Area under a curve, by trapezes: the probability that a member scores above another, ties
    counted half.
    """
    return float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))


def hits_at(fpr: np.ndarray, tpr: np.ndarray, false_alarms: float) -> float:
    """The largest true-positive rate at a false-positive rate of at most `false_alarms`. Nothing is
    interpolated.
    """
    return float(tpr[fpr <= false_alarms + 1e-12].max())


def measured(
    members: np.ndarray, others: np.ndarray, *, seed: int, draws: int = 1000
) -> dict[str, Any]:
    """All of it as plain numbers, with 95 % bootstrap intervals (percentiles; members and others
    drawn apart).

    Below one false alarm in `others` a rate means: no false alarm at all.

    Returns:
        members, others (counts), auc, auc_interval, tpr (by false-positive rate, as text),
        tpr_interval, and roc: {fpr, tpr}, at most some 400 points.

    Raises:
        UserError: as `roc`.
    """
    fpr, tpr = roc(members, others)
    rng = np.random.default_rng([seed, 0xB007])
    drawn: list[tuple[float, ...]] = []
    for _ in range(draws):
        curve = roc(rng.choice(members, len(members)), rng.choice(others, len(others)))
        drawn.append((area(*curve), *(hits_at(*curve, rate) for rate in FALSE_ALARMS)))
    low, high = np.percentile(np.array(drawn), [2.5, 97.5], axis=0)
    keep = _corners(fpr, tpr)
    return {
        "members": len(members),
        "others": len(others),
        "auc": area(fpr, tpr),
        "auc_interval": [float(low[0]), float(high[0])],
        "tpr": {f"{rate:g}": hits_at(fpr, tpr, rate) for rate in FALSE_ALARMS},
        "tpr_interval": {
            f"{rate:g}": [float(low[at]), float(high[at])]
            for at, rate in enumerate(FALSE_ALARMS, start=1)
        },
        "roc": {"fpr": fpr[keep].tolist(), "tpr": tpr[keep].tolist()},
    }


def _corners(fpr: np.ndarray, tpr: np.ndarray) -> np.ndarray:
    """Points to keep: the ends of straight pieces, and of those the lowest ones all, the others
    thinned.
    """
    straight = np.diff(fpr)[1:] * np.diff(tpr)[:-1] == np.diff(fpr)[:-1] * np.diff(tpr)[1:]
    corners = np.flatnonzero(np.r_[True, ~straight, True])
    if len(corners) <= _CURVE_POINTS:
        return corners
    half = _CURVE_POINTS // 2
    rest = np.linspace(half, len(corners) - 1, _CURVE_POINTS - half).round().astype(int)
    return corners[np.r_[np.arange(half), rest]]
