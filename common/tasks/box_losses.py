"""The loss of boxes: which place answers for which box, and how far it is off.

As FCOS without centre-ness (Tian et al. 2019, "FCOS: fully convolutional one-stage object
detection", sections 3.1 and 3.2): a place answers for the smallest box that it lies in, of the
boxes of its level's sizes, and only near the middle of it (their "center sampling").
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.tasks.box_geometry import area_of, generalized_iou
from fedgraft.common.tasks.box_places import Places, read_places

# focal loss (Lin et al. 2017, equation 5)
BALANCE = 0.25
FOCUS = 2.0
# strides from the middle of a box that its places lie within
RADIUS = 1.5
# strides that a place's farthest side lies away at most, unless its level is the coarsest
REACH = 8.0


def box_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs of places `(n, K + 7, P)`, boxes `(n, M, 5)` → loss of each image `(n,)`, nats: the
    focal loss of its places' classes and 1 − the generalized IoU of the boxes of those that answer
    for one, both by how many these are (equation 2).
    """
    places = read_places(outputs)
    owners, is_owned = assign_places(places, targets)
    owned = targets.gather(1, owners[..., None].expand(-1, -1, targets.shape[2]))
    classes = owned[..., 0].clamp(min=0).to(torch.int64)
    truth = F.one_hot(classes, places.classes).to(outputs.dtype) * is_owned[..., None]
    focal = focal_losses(places.logits, truth.transpose(1, 2)).sum((1, 2))
    off = 1 - generalized_iou(places.boxes, owned[..., 1:])
    sides = (off * is_owned).sum(1)
    return (focal + sides) / is_owned.sum(1).clamp(min=1)


def focal_losses(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the focal loss of each logit, where `truth` is 1 or 0."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    chance = logits.sigmoid()
    missed = chance * (1 - truth) + (1 - chance) * truth
    balance = BALANCE * truth + (1 - BALANCE) * (1 - truth)
    return balance * missed**FOCUS * entropy


@torch.no_grad()
def assign_places(places: Places, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of the box that each place answers for `(n, P)`, and whether it does.

    Args:
        targets: `(n, M, 5)`: class or −1 for none, left, top, right, bottom.
    """
    # only as many as any image has: most images have few of the most that there may be
    used = int((targets[..., 0] >= 0).sum(1).max()) if len(targets) else 0
    boxes = targets[:, None, : max(used, 1)]
    corners = boxes[..., 1:]
    centres = places.centres.transpose(1, 2)[:, :, None]
    stride = places.strides[..., None]
    low, high = corners[..., :2], corners[..., 2:]
    sides = torch.cat([centres - low, high - centres], dim=-1)
    is_inside = sides.amin(-1) > 0
    middle = (low + high) / 2
    is_central = (centres - middle).abs().amax(-1) < RADIUS * stride
    farthest = sides.amax(-1)
    finest = places.strides.amin(1)[:, None, None]
    coarsest = places.strides.amax(1)[:, None, None]
    least = torch.where(stride == finest, 0.0, stride * REACH / 2)
    most = torch.where(stride == coarsest, math.inf, stride * REACH)
    is_of_level = (farthest > least) & (farthest <= most)
    answers = is_inside & is_central & is_of_level & (boxes[..., 0] >= 0)
    areas = torch.where(answers, area_of(corners), math.inf)
    smallest, owners = areas.min(-1)
    return owners, torch.isfinite(smallest)
