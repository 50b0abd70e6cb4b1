"""Curves over thresholds, from merged histograms of scores: what a rare class needs beside AUROC.

A threshold lies between two bins, so that scores of one bin are tied. What ties can cost is stated
beside each number.
"""

from __future__ import annotations

import numpy as np


def precision_errors(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Return how far `score_areas.average_precision` can be from those of the exact scores, `(K,)`.

    In a bin with p positives and n negatives behind a positives and b negatives, the p lie best
    before all n and tied with one another, and then add p (a + p) / (a + p + b); worst, one by one
    behind all n, they add Σ_i (a + i) / (a + i + b + n), i = 1 … p.
    """
    # SciPy takes a tenth of a second to import
    from scipy.special import digamma

    after = _count_from(positives)
    before = after - positives
    wrong_after = _count_from(negatives)
    wrong_before = wrong_after - negatives
    tied = positives * after / np.maximum(after + wrong_after, 1)
    best = positives * after / np.maximum(after + wrong_before, 1)
    # Σ 1 / (c + i) over i = 1 … p is ψ(c + p + 1) − ψ(c + 1)
    start = before + wrong_after
    reciprocals = digamma(start + positives + 1) - digamma(start + 1)
    worst = positives - wrong_after * reciprocals
    furthest = np.maximum((best - tied).sum(1), (tied - worst).sum(1))
    return _mark_undefined(furthest, positives, negatives)


def sensitivities_at(
    positives: np.ndarray, negatives: np.ndarray, specificity: float
) -> np.ndarray:
    """Return the highest sensitivity of each class `(K,)` among thresholds whose specificity is at
    least this; NaN for a class without records, or with all of them.

    It is never above that of the exact scores, and below by at most `sensitivity_errors`.
    """
    spared = 1 - _count_from(negatives) / negatives.sum(1, keepdims=True).clip(1)
    allowed = spared >= specificity
    return _mark_undefined((positives * allowed).sum(1), positives, negatives)


def sensitivity_errors(
    positives: np.ndarray, negatives: np.ndarray, specificity: float
) -> np.ndarray:
    """Return how far `sensitivities_at` can be below those of the exact scores `(K,)`: the share of
    positives in the first bin that would break the specificity.
    """
    spared = 1 - _count_from(negatives) / negatives.sum(1, keepdims=True).clip(1)
    refused = spared < specificity
    # bins rise: the highest of those refused
    highest = positives.shape[1] - 1 - refused[:, ::-1].argmax(1)
    split = positives[np.arange(len(positives)), highest] * refused.any(1)
    return _mark_undefined(split, positives, negatives)


def _count_from(counts: np.ndarray) -> np.ndarray:
    """Return how many lie in each bin or above, `(K, BINS)`, as float64."""
    return np.cumsum(counts[:, ::-1].astype(float), axis=1)[:, ::-1]


def _mark_undefined(found: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Return a sum over positives `(K,)` as a part of all of them; NaN where there are no
    positives, or no negatives.
    """
    total = positives.sum(1)
    defined = (total > 0) & (negatives.sum(1) > 0)
    return np.where(defined, found / np.maximum(total, 1), np.nan)
