"""Which found boxes are right: held against the true ones of their image, the best score first.

As pycocotools (Lin et al. 2014, "Microsoft COCO", and its evaluation): a found box takes the true
box of its class, not yet taken, that it overlaps most; it is right where that is by at least the
threshold.
"""

from __future__ import annotations

import numpy as np
import torch

from fedgraft.common.tasks.box_geometry import intersection_over_union

# IoU from which a box is right: 0.5, 0.55, …, 0.95
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def match_boxes(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return at which thresholds each found box of one class is right, bool `(T, m)`.

    Args:
        found: `(m, 4)`, by falling scores.
        true: `(g, 4)`.
    """
    right = np.zeros((len(THRESHOLDS), len(found)), bool)
    if not len(found) or not len(true):
        return right
    # in double precision, as pycocotools: a box that is right to a hair stays so
    overlaps = intersection_over_union(torch.tensor(found).double(), torch.tensor(true).double())
    is_taken = np.zeros((len(THRESHOLDS), len(true)), bool)
    levels = np.arange(len(THRESHOLDS))
    for number, row in enumerate(overlaps.numpy()):
        free = np.where(is_taken, -1.0, row)
        # of two that overlap alike the later one
        best = len(true) - 1 - free[:, ::-1].argmax(1)
        is_right = free[levels, best] >= THRESHOLDS
        is_taken[levels[is_right], best[is_right]] = True
        right[:, number] = is_right
    return right
