"""What a head says at each place of an image, and the boxes that this is.

Outputs `(n, K + 7, P)` say of P places of all levels: K logits, how far the four sides of a box lie
(left, top, right, bottom, pixels), and where the place is: its x, its y and its level's stride. So
a loss or a report needs to know nothing of the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.tasks.box_geometry import suppress

# of a place, beside its logits: four sides, x, y, stride
BESIDE = 7
SIDES = 4
# no box with a lower score is told
LEAST_SCORE = 0.05
# of two boxes of a class that overlap by more the worse goes
MOST_OVERLAP = 0.6
# by their scores, before they are held against one another
MOST_HELD = 1000


@dataclass(frozen=True, eq=False)
class Places:
    """Outputs in their parts.

    Attributes:
        logits: `(n, K, P)`.
        boxes: `(n, P, 4)`, pixels of the prepared image.
        centres: `(n, 2, P)`, x and y.
        strides: `(n, P)`.
    """

    logits: Tensor
    boxes: Tensor
    centres: Tensor
    strides: Tensor

    @property
    def classes(self) -> int:
        """Return how many classes there are."""
        return self.logits.shape[1]


def read_places(outputs: Tensor) -> Places:
    """Return the parts of outputs `(n, K + 7, P)`."""
    classes = outputs.shape[1] - BESIDE
    logits, sides, centres, strides = outputs.split([classes, SIDES, 2, 1], dim=1)
    low = centres - sides[:, :2]
    high = centres + sides[:, 2:]
    boxes = torch.cat([low, high], dim=1).transpose(1, 2)
    return Places(logits, boxes, centres, strides[:, 0])


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of one image by falling scores, at most as many as agreed on.

    Attributes:
        boxes: float32 `(m, 4)`, left, top, right, bottom.
        scores: float32 `(m,)`, from `LEAST_SCORE` to 1.
        classes: int64 `(m,)`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


@torch.no_grad()
def find_boxes(places: Places, image: int, most: int, side: float | None = None) -> Detections:
    """Return the boxes of one image of a batch after non-maximum suppression.

    Args:
        image: its number in the batch.
        most: boxes that are kept.
        side: of the image, which boxes are cut to; None: they are left as they are.
    """
    scores = places.logits[image].sigmoid()
    classes, where = (scores > LEAST_SCORE).nonzero(as_tuple=True)
    found = scores[classes, where]
    best = found.argsort(descending=True, stable=True)[:MOST_HELD]
    boxes = places.boxes[image][where[best]]
    if side is not None:
        boxes = boxes.clamp(0, side)
    return keep_best(boxes, found[best], classes[best], most)


def keep_best(boxes: Tensor, scores: Tensor, classes: Tensor, most: int) -> Detections:
    """Return the best of boxes `(m, 4)` by scores `(m,)`, of which none hides behind a better one
    of its class `(m,)`.
    """
    kept = suppress(boxes, scores, classes, MOST_OVERLAP)[:most]
    return Detections(boxes[kept].numpy(), scores[kept].numpy(), classes[kept].numpy())
