"""Masks of whole images and volumes in their own grid, whatever size a network sees.

An image is brought to the scale that was trained on and looked at in overlapping windows of the
network's side; a volume in overlapping crops. Where windows overlap, the probabilities are averaged
(as MONAI's sliding-window inference does), and the likeliest class of each place is the answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.inputs.volume import Volume, VolumePreparation
from fedgraft.common.model.shared_model import SharedModel

# windows that go through a network at once
AT_ONCE = 8


def outline(shared: SharedModel, record: Tensor | Volume) -> Tensor:
    """Return the class of each place of an image `(channels, H, W)` or a volume, uint8, in its own
    grid.

    Raises:
        UserError: a model whose answers are no masks, or another kind of record than it takes.
    """
    if shared.question.takes != "maps":
        what = f"the answers of {shared.plan.task.kind} are no masks"
        raise UserError(what, where="masks", remedy="use predict")
    if isinstance(record, Volume):
        return outline_volume(shared, record)
    return outline_image(shared, record)


@torch.inference_mode()
def outline_image(shared: SharedModel, image: Tensor) -> Tensor:
    """Return the class of each pixel of an image `(channels, H, W)`, uint8 `(H, W)`.

    Raises:
        UserError: a model that takes no images.
    """
    preparation = shared.preprocess
    if not isinstance(preparation, Preprocess) or preparation.crop is None:
        raise UserError("this model outlines no images", where="predict", remedy="give volumes")
    side = preparation.crop
    whole = replace(preparation, crop=None)(image[None]).only[0]
    height, width = whole.shape[-2:]
    total = torch.zeros(len(shared.classes), height, width)
    times = torch.zeros(height, width)
    corners = list(itertools.product(cover_side(height, side), cover_side(width, side)))
    for start in range(0, len(corners), AT_ONCE):
        some = corners[start : start + AT_ONCE]
        windows = [whole[:, top : top + side, left : left + side] for top, left in some]
        shares = shared.model(Batch({"image": torch.stack(windows)})).cpu().softmax(1)
        for (top, left), share in zip(some, shares, strict=True):
            total[:, top : top + side, left : left + side] += share
            times[top : top + side, left : left + side] += 1
    mean = (total / times)[None]
    own = F.interpolate(mean, image.shape[-2:], mode="bilinear", align_corners=False)
    return own[0].argmax(0).to(torch.uint8)


def cover_side(length: int, side: int) -> list[int]:
    """Return where windows begin that cover a length: as few as share half with their
    neighbours.
    """
    beyond = max(length - side, 0)
    if beyond == 0:
        return [0]
    steps = -(-beyond // (side // 2))
    return [round(beyond * step / steps) for step in range(steps + 1)]


# ── volumes ───────────────────────────────────────────────────────────────────────────────────────
@torch.inference_mode()
def outline_volume(shared: SharedModel, volume: Volume) -> Tensor:
    """Return the class of each voxel of a volume, uint8 `(D, H, W)`; what lies outside of every
    crop is background.

    Raises:
        UserError: a model that takes no volumes; too many crops.
    """
    preparation = shared.preprocess
    if not isinstance(preparation, VolumePreparation):
        raise UserError("this model outlines no volumes", where="predict", remedy="give images")
    sides = tuple(volume.values.shape[1:])
    total = torch.zeros(len(shared.classes), *sides)
    for offset, crop in preparation.cover(volume):
        shares = shared.model(crop).cpu().softmax(1)[0]
        for axis in range(3):
            places, is_inside = preparation.find_outputs(volume, axis, offset[axis])
            shares = shares.index_select(1 + axis, places)
            shape = [1, 1, 1, 1]
            shape[1 + axis] = len(is_inside)
            shares = shares * is_inside.view(shape)
        total += shares
    # a voxel that no crop saw has nothing of any class: the first, the background
    return total.argmax(0).to(torch.uint8)


def share_of_classes(mask: Tensor, classes: Sequence[str]) -> list[float]:
    """Return which share of a mask each class has."""
    counts = torch.bincount(mask.flatten().to(torch.int64), minlength=len(classes))
    return (counts / mask.numel()).tolist()
