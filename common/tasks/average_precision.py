"""Average precision from histograms of scores: so nodes' counts add up to that of all images.

COCO's: the mean, over the recalls 0, 0.01, …, 1, of the highest precision at that recall or beyond
(Lin et al. 2014; Everingham et al. 2010, section 4.2, with 101 recalls in place of 11).

Boxes in one bin are tied: only whole bins are taken in. The average precision is then the least
that any order within the bins gives, all wrong boxes of a bin before its right ones; the most is
with the right ones first. What their scores themselves give lies between both, and equals both
where no bin has right and wrong boxes.
"""

from __future__ import annotations

import numpy as np

SCORE_BINS = 256
RECALLS = np.linspace(0.0, 1.0, 101)


def bin_scores(scores: np.ndarray) -> np.ndarray:
    """Return the bin 0 … SCORE_BINS − 1 of each score from 0 to 1."""
    return np.minimum((scores * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)


def least_average_precision(hits: np.ndarray, found: np.ndarray, boxes: int) -> float | None:
    """Return the least average precision that any order within bins gives; None without a box.

    Args:
        hits: right boxes by score, `(SCORE_BINS,)`.
        found: all found boxes, likewise.
        boxes: true ones.
    """
    right = hits[::-1].cumsum()
    return _mean_over_recalls(right, found[::-1].cumsum(), boxes)


def most_average_precision(hits: np.ndarray, found: np.ndarray, boxes: int) -> float | None:
    """Return the most, right boxes first within each bin; arguments as of the least."""
    right = hits[::-1].cumsum()
    wrong_before = (found - hits)[::-1].cumsum() - (found - hits)[::-1]
    return _mean_over_recalls(right, right + wrong_before, boxes)


def _mean_over_recalls(right: np.ndarray, told: np.ndarray, boxes: int) -> float | None:
    if boxes == 0:
        return None
    recall = right / boxes
    precision = right / np.maximum(told, 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    # where a recall is never reached its precision is 0
    first = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(highest, 0.0)[first].mean())
