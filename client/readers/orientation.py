"""Voxels in any order of a scanner → on the patient's axes, and how far they are apart."""

from __future__ import annotations

import numpy as np

# mm from voxel to voxel
NEAREST = 0.01
FARTHEST = 100.0
# of the volume that three directions of length 1 span: 1 at right angles
LEAST_UPRIGHT = 0.8


class BrokenVolume(ValueError):
    """Why a volume cannot be used, in words that name a kind of problem and no record."""


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

    from scipy.optimize import linear_sum_assignment

    # of right, front and head: which axis of the file runs along it
    _, along = linear_sum_assignment(-np.abs(cosines))
    order = [int(along[patient]) for patient in (2, 1, 0)]
    turned = voxels.transpose(order)
    for place, patient in enumerate((2, 1, 0)):
        if cosines[patient, along[patient]] < 0:
            turned = np.flip(turned, place)
    depth, height, width = (float(lengths[axis]) for axis in order)
    return turned, (depth, height, width)
