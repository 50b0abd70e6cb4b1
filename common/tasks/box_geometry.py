"""Boxes as numbers: how far two overlap, and which of many are kept.

A box is `[left, top, right, bottom]` in pixels; right and bottom are where it ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

# sides in pixels, so that nothing is divided by 0
TINY = 1e-7


def area_of(boxes: Tensor) -> Tensor:
    """Return the areas of boxes `(…, 4)`; 0 where an end lies before its beginning."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def overlap_boxes(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return intersection and union of pairs of boxes `(…, 4)`, areas."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    both = area_of(torch.cat([low, high], dim=-1))
    return both, area_of(first) + area_of(second) - both


def intersection_over_union(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU of each of boxes `(n, 4)` with each of others `(m, 4)`, `(n, m)`."""
    both, either = overlap_boxes(first[:, None], second[None])
    return both / either.clamp(min=TINY)


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the generalized IoU of pairs of boxes `(…, 4)`, from −1 to 1 (Rezatofighi et al. 2019,
    "Generalized intersection over union", algorithm 1).
    """
    both, either = overlap_boxes(first, second)
    low = torch.minimum(first[..., :2], second[..., :2])
    high = torch.maximum(first[..., 2:], second[..., 2:])
    around = area_of(torch.cat([low, high], dim=-1))
    iou = both / (either + TINY)
    return iou - (around - either) / (around + TINY)


def suppress(boxes: Tensor, scores: Tensor, classes: Tensor, most_overlap: float) -> Tensor:
    """Return which boxes are kept, by falling scores: one goes where it overlaps a better one of
    its class by more than `most_overlap` (IoU).

    Args:
        boxes, scores, classes: `(n, 4)`, `(n,)`, `(n,)`.
    """
    # it takes a second to import, and only boxes need it
    from torchvision.ops import nms

    # classes lie apart, so that no box of one overlaps one of another; in double precision, as
    # moved boxes would lose bits
    apart = boxes.double()
    if len(boxes):
        span = apart.max() - apart.min() + 1
        apart = apart + (classes.double() * span)[:, None]
    return nms(apart, scores.double(), most_overlap)
