"""Intervals for the page: over test examples where there is one run, over seeds where there are
several.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedgraft.server.papers.model_card import wilson

Z = 1.959964  # 97.5 % of a normal distribution


class Interval(NamedTuple):
    """A value and its 95 % interval; without one where nothing can be said of it."""

    value: float
    low: float | None = None
    high: float | None = None


def of_share(share: float, count: int) -> Interval:
    """A share of `count` test examples, such as an accuracy (Wilson 1927, JASA 22:209–212; score
    interval).
    """
    if count < 1:
        return Interval(share)
    return Interval(share, *wilson(share, count))


def of_area(area: float, positives: int, negatives: int) -> Interval:
    """An area under the ROC curve (Hanley and McNeil 1982, Radiology 143:29–36, equations 1 and
    2).
    """
    if positives < 2 or negatives < 2:
        return Interval(area)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    half = Z * math.sqrt(max(0.0, spread) / (positives * negatives))
    return Interval(area, max(0.0, area - half), min(1.0, area + half))


def of_mean(values: Sequence[float]) -> Interval:
    """The mean over seeds, with Student's t (n − 1 degrees of freedom); of one value none is
    known.
    """
    if len(values) < 2:
        return Interval(float(values[0]))
    from scipy import stats

    middle = float(np.mean(values))
    half = float(
        stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    )
    return Interval(middle, middle - half, middle + half)


def said(found: Interval, digits: int = 3) -> str:
    """`0.861 (0.843 to 0.879)`."""
    if found.low is None or found.high is None:
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"
