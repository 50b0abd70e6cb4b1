"""Classification sums that came over the wire: read, and held against one another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedgraft.common.tasks.classification_sums import CALIBRATION_BINS, ClassificationSums
from fedgraft.common.tasks.flat_sums import (
    Flat,
    check_keys,
    read_count,
    read_count_list,
    read_counts,
    read_loss,
    read_positions,
)
from fedgraft.common.tasks.score_bins import BINS

KEYS = {
    "examples",
    "loss",
    "confusion-at",
    "confusion",
    "positives-at",
    "positives",
    "negatives-at",
    "negatives",
    "calibration-at",
    "calibration-count",
    "calibration-confidence",
    "calibration-correct",
}


def sums_from_flat(flat: Flat, classes: int) -> ClassificationSums:
    """Return the sums that `ClassificationSums.to_flat` wrote.

    Raises:
        ValueError: keys, types, sizes or values that no predictions could give, or totals that
            disagree.
    """
    check_keys(flat, KEYS)
    sums = ClassificationSums(
        classes=classes,
        confusion=read_counts(flat, "confusion", (classes, classes)),
        loss=read_loss(flat),
        examples=read_count(flat, "examples"),
        positives=read_counts(flat, "positives", (classes, BINS)),
        negatives=read_counts(flat, "negatives", (classes, BINS)),
        calibration=_read_calibration(flat),
    )
    check_totals(sums)
    return sums


# ── every part tells of the same examples ─────────────────────────────────────────────────────────
def check_totals(sums: ClassificationSums) -> None:
    """Raise `ValueError` where parts of the sums cannot be of the same predictions."""
    true = sums.confusion.sum(axis=1)
    if int(true.sum()) != sums.examples:
        raise ValueError("confusion counts and examples disagree")
    if _has_only_counts(sums):
        return
    if (sums.positives.sum(axis=1) != true).any():
        raise ValueError("score histograms and confusion counts disagree")
    if (sums.negatives.sum(axis=1) != sums.examples - true).any():
        raise ValueError("score histograms and examples disagree")
    check_calibration(sums)
    if sums.examples == 0 and sums.loss != 0:
        raise ValueError("a loss without examples")


def _has_only_counts(sums: ClassificationSums) -> bool:
    """Whether the sums are those of `ClassificationSums.only_counts`."""
    has_scores = bool(sums.positives.any() or sums.negatives.any())
    return not (sums.calibration[:, 0].any() or has_scores or sums.loss)


def check_calibration(sums: ClassificationSums) -> None:
    """Raise `ValueError` where the calibration bins cannot be of the predictions counted."""
    count, confidence, correct = sums.calibration.T
    if int(count.sum()) != sums.examples:
        raise ValueError("calibration bins and examples disagree")
    if int(correct.sum()) != int(np.trace(sums.confusion)):
        raise ValueError("calibration bins and confusion counts disagree")
    if (correct > count).any():
        raise ValueError("a calibration bin has more correct predictions than predictions")
    # a bin's mean confidence lies inside the bin; the slack is for rounding
    slack = 1e-9 * (1 + count)
    low = np.arange(CALIBRATION_BINS) / CALIBRATION_BINS
    high = low + 1 / CALIBRATION_BINS
    below = confidence < low * count - slack
    above = confidence > high * count + slack
    if (below | above).any():
        raise ValueError("a calibration bin's confidences lie outside the bin")


# ── numbers and lists of them ─────────────────────────────────────────────────────────────────────
def _read_calibration(flat: Flat) -> np.ndarray:
    at = read_positions(flat, "calibration-at", CALIBRATION_BINS)
    table = np.zeros((CALIBRATION_BINS, 3))
    table[at, 0] = read_count_list(flat, "calibration-count", len(at), least=1)
    table[at, 1] = _read_confidences(flat["calibration-confidence"], len(at))
    table[at, 2] = read_count_list(flat, "calibration-correct", len(at), least=0)
    return table


def _read_confidences(values: Any, length: int) -> list[float]:
    is_list = isinstance(values, list) and len(values) == length
    if not is_list or not all(map(_is_finite, values)):
        raise ValueError(f"calibration-confidence is not a list of {length} finite numbers")
    return values


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)
