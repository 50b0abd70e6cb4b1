"""Voxels in any order of a scanner → on the patient's axes, and how far they are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# mm from voxel to voxel
NEAREST = 0.01
FARTHEST = 100.0
# of the volume that three directions of length 1 span: 1 at right angles
LEAST_UPRIGHT = 0.8


class BrokenVolume(ValueError):
    """Why a volume cannot be used, in words that name a kind of problem and no record."""


@dataclass(frozen=True)
class Scan:
    """A volume on the patient's axes.

    Attributes:
        voxels: float32 `(channels, D, H, W)`.
        spacing: mm from voxel to voxel, in the order D, H, W.
        grid: `(4, 4)`: place of a voxel (D, H, W, 1) → mm towards the patient's right, front, head.
        patient: whose it is, a pseudonym; "" where the files do not say it.
    """

    voxels: np.ndarray
    spacing: tuple[float, float, float]
    grid: np.ndarray
    patient: str = ""


def orient_scan(images: Sequence[np.ndarray], affine: np.ndarray, patient: str = "") -> Scan:
    """Return images `(a, b, c)` of one grid as a scan. Raise as `orient`."""
    turned = [orient(image, affine) for image in images]
    _, spacing = turned[0]
    voxels = np.stack([image for image, _ in turned])
    return Scan(voxels, spacing, orient_grid(images[0].shape, affine), patient)


def orient_grid(sides: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Return the affine `(4, 4)` of voxels `(D, H, W)` that `orient` turned.

    Args:
        sides: of the voxels as they were.
    """
    order, is_flipped = _find_axes(affine[:3, :3].astype(np.float64))
    grid = np.eye(4)
    grid[:3, 3] = affine[:3, 3]
    for place, axis in enumerate(order):
        step = affine[:3, axis]
        grid[:3, place] = step
        if is_flipped[place]:
            grid[:3, place] = -step
            grid[:3, 3] += step * (sides[axis] - 1)
    return grid


def _find_axes(directions: np.ndarray) -> tuple[list[int], list[bool]]:
    """Return which axis of a file runs along head, front and right, and whether the other way."""
    from scipy.optimize import linear_sum_assignment

    cosines = directions / np.sqrt(np.square(directions).sum(0))
    # of right, front and head: which axis of the file runs along it
    _, along = linear_sum_assignment(-np.abs(cosines))
    order = [int(along[patient]) for patient in (2, 1, 0)]
    is_flipped = [bool(cosines[patient, along[patient]] < 0) for patient in (2, 1, 0)]
    return order, is_flipped


def orient(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Return voxels from feet to head, back to front, left to right, and the mm between them.

    Axes are exchanged and turned round, nothing is computed: an oblique volume stays oblique.

    Args:
        voxels: `(a, b, c)`, in the order of the file.
        affine: `(4, 4)`: place of a voxel → mm towards the patient's right, front and head.

    Raises:
        BrokenVolume: directions or distances that no scanner has.
    """
    directions = affine[:3, :3].astype(np.float64)
    if not np.isfinite(directions).all():
        raise BrokenVolume("a geometry that is not finite")
    lengths = np.sqrt(np.square(directions).sum(0))
    if lengths.min() < NEAREST or lengths.max() > FARTHEST:
        raise BrokenVolume(f"voxels less than {NEAREST:g} or more than {FARTHEST:g} mm apart")
    cosines = directions / lengths
    if abs(np.linalg.det(cosines)) < LEAST_UPRIGHT:
        raise BrokenVolume("axes that are not at right angles")

    order, is_flipped = _find_axes(directions)
    turned = voxels.transpose(order)
    for place in range(3):
        if is_flipped[place]:
            turned = np.flip(turned, place)
    depth, height, width = (float(lengths[axis]) for axis in order)
    return turned, (depth, height, width)
