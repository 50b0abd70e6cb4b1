"""Classification sums that came over the wire: read, and held against one another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedgraft.common.tasks.classification_sums import CALIBRATION_BINS, MOST, ClassificationSums
from fedgraft.common.tasks.score_bins import BINS

# so that no sum of many nodes' losses overflows
LARGEST_LOSS = 1e30
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
Flat = Mapping[str, Any]


def sums_from_flat(flat: Flat, classes: int) -> ClassificationSums:
    """Return the sums that `ClassificationSums.to_flat` wrote.

    Raises:
        ValueError: keys, types, sizes or values that no predictions could give, or totals that
            disagree.
    """
    if set(flat) != KEYS:
        odd = sorted(KEYS.symmetric_difference(map(str, flat)))
        raise ValueError(f"keys missing or unknown: {', '.join(odd)[:200]}")
    sums = ClassificationSums(
        classes=classes,
        confusion=_read_counts(flat, "confusion", (classes, classes)),
        loss=_read_loss(flat["loss"]),
        examples=_read_examples(flat["examples"]),
        positives=_read_counts(flat, "positives", (classes, BINS)),
        negatives=_read_counts(flat, "negatives", (classes, BINS)),
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
def _read_examples(value: Any) -> int:
    if not _is_count(value, least=0):
        raise ValueError(f"examples is {value!r}; a count was agreed on")
    return value


def _read_loss(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= LARGEST_LOSS:
        raise ValueError(f"loss is {value!r}; a finite sum of cross-entropies was agreed on")
    return float(value)


def _read_counts(flat: Flat, name: str, shape: tuple[int, int]) -> np.ndarray:
    """Return the counts of a histogram that travelled as positions and what is not zero there."""
    size = math.prod(shape)
    at = _read_positions(flat, f"{name}-at", size)
    counts = np.zeros(size, np.int64)
    counts[at] = _read_list(flat, name, len(at), least=1)
    return counts.reshape(shape)


def _read_calibration(flat: Flat) -> np.ndarray:
    at = _read_positions(flat, "calibration-at", CALIBRATION_BINS)
    table = np.zeros((CALIBRATION_BINS, 3))
    table[at, 0] = _read_list(flat, "calibration-count", len(at), least=1)
    table[at, 1] = _read_confidences(flat["calibration-confidence"], len(at))
    table[at, 2] = _read_list(flat, "calibration-correct", len(at), least=0)
    return table


def _read_positions(flat: Flat, name: str, size: int) -> np.ndarray:
    """Return a strictly rising list of positions below `size`."""
    values = flat[name]
    if not _is_list_of_counts(values, least=0):
        raise ValueError(f"{name} is not a list of positions")
    at = np.array(values, np.int64)
    if len(at) and (at[-1] >= size or (np.diff(at) <= 0).any()):
        raise ValueError(f"{name} has positions out of order or beyond {size - 1}")
    return at


def _read_list(flat: Flat, name: str, length: int, least: int) -> np.ndarray:
    values = flat[name]
    if not _is_list_of_counts(values, least) or len(values) != length:
        raise ValueError(f"{name} is not a list of {length} counts")
    return np.array(values, np.int64)


def _read_confidences(values: Any, length: int) -> list[float]:
    is_list = isinstance(values, list) and len(values) == length
    if not is_list or not all(map(_is_finite, values)):
        raise ValueError(f"calibration-confidence is not a list of {length} finite numbers")
    return values


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _is_list_of_counts(values: Any, least: int) -> bool:
    return isinstance(values, list) and all(_is_count(value, least=least) for value in values)


def _is_count(value: Any, *, least: int) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and least <= value <= MOST
