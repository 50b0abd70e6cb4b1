"""How far the edges of two masks lie apart: the Hausdorff distance of which 5 % are left out."""

from __future__ import annotations

from typing import Any

import numpy as np

# of the distances from each edge to the other
PERCENTILE = 95


def hausdorff_95(predicted: np.ndarray, true: np.ndarray) -> float | None:
    """Return the 95th percentile of the distances from one edge to the other, the larger of both
    ways, in steps of the grid; None where a mask is empty: it has no edge.

    As MONAI's `compute_hausdorff_distance(percentile=95)` (Huttenlocher et al. 1993, "Comparing
    images using the Hausdorff distance", section II, with a rank below the last).

    Args:
        predicted, true: bool, of one shape `(H, W)` or `(D, H, W)`.
    """
    if not (predicted.any() and true.any()):
        return None
    where = find_box(predicted | true)
    first = find_edge(predicted[where])
    second = find_edge(true[where])
    there = np.percentile(measure_to(second)[first], PERCENTILE)
    back = np.percentile(measure_to(first)[second], PERCENTILE)
    return float(max(there, back))


def find_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box around what is in a mask that is not empty."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        others = tuple(each for each in range(mask.ndim) if each != axis)
        places = np.flatnonzero(mask.any(others))
        box.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(box)


def find_edge(mask: np.ndarray) -> np.ndarray:
    """Return what of a mask has a neighbour outside it; beyond the grid all is outside."""
    return mask & ~_morphology().binary_erosion(mask)


def measure_to(edge: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance of each place to the nearest of an edge, float64."""
    return _morphology().distance_transform_edt(~edge)


def _morphology() -> Any:
    # it takes a tenth of a second to import, and only masks need it
    from scipy import ndimage

    return ndimage
