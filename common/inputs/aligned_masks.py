"""Masks brought to the grid of prepared inputs: the class of the nearest place, never a mixture.

An image is resized and cropped before a network sees it, a volume resampled; its mask goes the same
way, with the same geometry, and what lies outside it is background (0).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import Preprocess, crop_centre, shape_with_shorter_side
from fedgraft.common.inputs.material import Preparation
from fedgraft.common.inputs.volume import Volume, VolumePreparation, find_places


def align_mask(mask: Volume | Tensor, preparation: Preparation) -> Tensor:
    """Return the class of each place of a prepared record, uint8 `(*grid,)`.

    Args:
        mask: of an image, uint8 `(H, W)`; of a volume `(1, D, H, W)` with its spacing.
        preparation: of the record.

    Raises:
        UserError: records that have no places.
    """
    if isinstance(mask, Tensor) and isinstance(preparation, Preprocess):
        return align_image(mask, preparation)
    if isinstance(mask, Volume) and isinstance(preparation, VolumePreparation):
        return align_volume(mask, preparation)
    what = "a mask of something else than an image or a volume"
    raise UserError(what, where="task.kind", remedy="write image- or volume-segmentation")


def align_image(mask: Tensor, preparation: Preprocess) -> Tensor:
    """Return a mask `(H, W)` resized and cropped as `Preprocess` does its image."""
    values = mask[None, None].to(torch.float32)
    if preparation.size is not None:
        height, width = mask.shape
        shape = shape_with_shorter_side(height, width, preparation.size)
        # middles of pixels on middles of pixels, as interpolation does without corners aligned
        values = F.interpolate(values, shape, mode="nearest-exact")
    if preparation.crop is not None:
        values = crop_centre(values, preparation.crop)
    return values[0, 0].to(torch.uint8)


def align_volume(mask: Volume, preparation: VolumePreparation) -> Tensor:
    """Return a mask `(1, D, H, W)` resampled as `VolumePreparation` does its volume."""
    values = mask.values[0]
    section = preparation.section
    sides = tuple(values.shape)
    for axis in range(3):
        step = preparation.step(sides, mask.spacing)[axis]
        places, is_inside = find_places(sides[axis], section.size[axis], step)
        values = values.index_select(axis, places)
        shape = [1, 1, 1]
        shape[axis] = len(is_inside)
        values = values * is_inside.view(shape)
    if preparation.slices is not None:
        values = values[preparation.slice_places()]
    return values.to(torch.uint8).contiguous()
