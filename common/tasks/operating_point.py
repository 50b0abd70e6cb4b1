"""At which score the second of two classes is answered, chosen from merged histograms of scores:
hospitals find the point of their pooled records without pooling them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fedgraft.common.tasks.classification_sums import ClassificationSums
from fedgraft.common.tasks.score_bins import BINS, edge_of

# the bin that begins at even odds, where the likelier class is the answer
EVEN = BINS // 2


@dataclass(frozen=True)
class OperatingPoint:
    """A score from which on the second class is answered.

    Attributes:
        score_bin: the first bin of scores that is answered so, 0 … BINS; see `score_bins.py`.
        sensitivity: share of the second class's records that are found.
        specificity: share of the first class's records that are.
    """

    score_bin: int
    sensitivity: float
    specificity: float

    @property
    def threshold(self) -> float:
        """Return the probability of the second class from which on it is answered."""
        return 1 / (1 + math.exp(-edge_of(self.score_bin)))


def choose_point(
    sums: ClassificationSums, *, sensitivity: float | None = None, specificity: float | None = None
) -> OperatingPoint:
    """Return the point with the highest specificity of those that have this sensitivity, the
    highest sensitivity of those that have this specificity; where neither is given, the highest
    sum of both (Youden 1950, "Index for rating diagnostic tests"). Of equals the one nearest to
    even odds.

    Args:
        sums: over two classes.

    Raises:
        ValueError: other than two classes, or records of one of them alone.
    """
    if sums.classes != 2 or not (sums.positives[1].any() and sums.negatives[1].any()):
        raise ValueError("an operating point needs records of two classes")
    found = _share_from(sums.positives[1])
    spared = 1 - _share_from(sums.negatives[1])
    value = found + spared
    if sensitivity is not None:
        value = np.where(found >= sensitivity, spared, -1.0)
    if specificity is not None:
        value = np.where(spared >= specificity, found, -1.0)
    highest = np.flatnonzero(value == value.max()).tolist()
    at = min(highest, key=lambda place: abs(place - EVEN))
    return OperatingPoint(at, float(found[at]), float(spared[at]))


def answer_from(sums: ClassificationSums, score_bin: int) -> ClassificationSums:
    """Return the sums with the answers that are given from a bin of scores on; losses and scores
    are as they were.
    """
    confusion = np.zeros_like(sums.confusion)
    for truth, scores in ((0, sums.negatives[1]), (1, sums.positives[1])):
        confusion[truth] = scores[:score_bin].sum(), scores[score_bin:].sum()
    return replace(sums, confusion=confusion)


def _share_from(counts: np.ndarray) -> np.ndarray:
    """Return which share of counts `(BINS,)` lies in each bin or above, `(BINS + 1,)`."""
    above = np.cumsum(counts[::-1])[::-1]
    return np.append(above, 0) / counts.sum()
