"""Intervals for the page: over test examples where there is one run, over seeds where there are
several.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedgraft.server.papers.model_card import wilson

# 97.5 % of a normal distribution
Z = 1.959964


class Interval(NamedTuple):
    """A value and its 95 % interval; without one where nothing can be said of it.

    accuracy = estimate_share(0.9, 468)
    show_interval(accuracy)             # "0.900 (0.870 to 0.924)"
    Interval(0.9).bounds                # None
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Both ends, or None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low, self.high


def estimate_share(share: float, count: int) -> Interval:
    """Return the interval of a share of `count` test examples, such as an accuracy.

    Source: Wilson 1927, JASA 22:209–212, the score interval.
    """
    if count < 1:
        return Interval(share)
    low, high = wilson(share, count)
    return Interval(share, low, high)


def estimate_area(area: float, positives: int, negatives: int) -> Interval:
    """Return the interval of an area under the ROC curve.

    Source: Hanley and McNeil 1982, Radiology 143:29–36, equations 1 and 2.
    """
    if positives < 2 or negatives < 2:
        return Interval(area)

    q1 = area / (2 - area)
    q2 = 2 * area**2 / (1 + area)
    spread = area * (1 - area)
    spread += (positives - 1) * (q1 - area**2)
    spread += (negatives - 1) * (q2 - area**2)

    variance = max(0.0, spread) / (positives * negatives)
    half = Z * math.sqrt(variance)
    low = max(0.0, area - half)
    high = min(1.0, area + half)
    return Interval(area, low, high)


def estimate_mean(values: Sequence[float]) -> Interval:
    """Return the mean over seeds, with Student's t (n − 1 degrees of freedom); of one value no
    interval is known.
    """
    count = len(values)
    if count < 2:
        return Interval(float(values[0]))
    # here, since scipy.stats takes a second to import and one run has no seeds to compare
    from scipy import stats

    middle = float(np.mean(values))
    quantile = stats.t.ppf(0.975, count - 1)
    deviation = np.std(values, ddof=1)
    half = float(quantile * deviation / math.sqrt(count))
    return Interval(middle, middle - half, middle + half)


def show_interval(interval: Interval, digits: int = 3) -> str:
    """Return `0.861 (0.843 to 0.879)`, or the value alone."""
    value = f"{interval.value:.{digits}f}"
    if interval.bounds is None:
        return value
    low, high = interval.bounds
    return f"{value} ({low:.{digits}f} to {high:.{digits}f})"
