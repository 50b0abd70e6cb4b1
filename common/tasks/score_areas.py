"""Areas under curves from histograms of scores, one row a question: what merges across hospitals.

Two scores in one bin count as equal: `score_bins.py`.
"""

from __future__ import annotations

import numpy as np


def area_under_roc(positives: np.ndarray, negatives: np.ndarray) -> list[float | None]:
    """Return P(positive above negative) + ½ P(equal), by row: the Mann–Whitney statistic over bins.

    Args:
        positives, negatives: counts by bin of score, `(k, bins)`.

    Returns:
        None for a row that has records of one kind alone.
    """
    above = positives.astype(float)
    others = negatives.astype(float)
    below = np.cumsum(others, axis=1) - others
    wins = (above * (below + 0.5 * others)).sum(axis=1)
    return ratios(wins, above.sum(axis=1) * others.sum(axis=1))


def average_precision(positives: np.ndarray, negatives: np.ndarray) -> list[float | None]:
    """Return Σ (recall gained at a threshold) · (precision there), by row, a threshold a bin: the
    average precision of scikit-learn where scores in one bin are equal.

    Returns:
        None for a row that has records of one kind alone.
    """
    found = np.cumsum(positives[:, ::-1].astype(float), axis=1)[:, ::-1]
    told = found + np.cumsum(negatives[:, ::-1].astype(float), axis=1)[:, ::-1]
    precision = found / np.maximum(told, 1.0)
    gained = (positives * precision).sum(axis=1)
    both = negatives.any(axis=1)
    return ratios(gained, both * positives.sum(axis=1).astype(float))


def ratios(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    """Return part / whole by row; None where the whole is zero."""
    values: list[float | None] = []
    for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True):
        values.append(part / whole if whole else None)
    return values


def mean_of_known(values: list[float | None]) -> float | None:
    """Return the mean of what is known; None: nothing is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return float(np.mean(known))
