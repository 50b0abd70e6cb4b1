"""Boxes brought to the grid of prepared images: they go where their images go."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import Preprocess, shape_with_shorter_side
from fedgraft.common.inputs.material import Preparation


def align_boxes(targets: Tensor, sides: tuple[int, int], preparation: Preparation) -> Tensor:
    """Return an image's boxes `(M, 5)` resized and cropped as `Preprocess` does the image.

    A box is cut at the margin of the crop; one whose middle lies outside it is none (class −1).

    Args:
        targets: class or −1 for none, left, top, right, bottom, in the image's own pixels.
        sides: the image's height and width.

    Raises:
        UserError: records that are no images.
    """
    if not isinstance(preparation, Preprocess):
        what = "boxes of something else than images"
        raise UserError(what, where="task.kind", remedy="write image-detection")
    height, width = sides
    shape = sides
    if preparation.size is not None:
        shape = shape_with_shorter_side(height, width, preparation.size)
    scale = torch.tensor([shape[1] / width, shape[0] / height]).repeat(2)
    boxes = targets[:, 1:] * scale
    if preparation.crop is None:
        return torch.cat([targets[:, :1], boxes], dim=1)
    boxes = boxes - find_corner(shape, preparation.crop).repeat(2)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    is_seen = ((middles >= 0) & (middles < preparation.crop)).all(1)
    classes = torch.where(is_seen, targets[:, 0], -1.0)
    return torch.cat([classes[:, None], boxes.clamp(0, preparation.crop)], dim=1)


def find_corner(shape: tuple[int, int], side: int) -> Tensor:
    """Return where the middle of an image begins, as `crop_centre` cuts it, `(x, y)`; negative
    where zeros are put around a smaller image.
    """
    starts: list[int] = []
    for length in reversed(shape):
        padding = max(side - length, 0)
        beyond = max(length, side) - side
        starts.append(round(beyond / 2) - padding // 2)
    return torch.tensor(starts, dtype=torch.float32)
