"""What found boxes add up to: right and wrong ones by their scores, and how many there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import Code, Refused
from fedgraft.common.tasks.adding_sums import add_fields, lies_within
from fedgraft.common.tasks.average_precision import (
    SCORE_BINS,
    bin_scores,
    least_average_precision,
    most_average_precision,
)
from fedgraft.common.tasks.box_losses import box_losses
from fedgraft.common.tasks.box_matching import THRESHOLDS, match_boxes
from fedgraft.common.tasks.box_places import Detections, find_boxes, read_places

IMAGE_BINS = 20
MOST_IMAGES = 2**40
# an image without a box is right where no box is told with a score from here on
SURE = 0.5
METRICS = ("map_50", "map", "image_ap_50", "loss")
# of one image, nats: one that a model is wild about does not hide all others, and is no reason to
# refuse, which would tell that it is there
MOST_LOSS = 1e6
# (hits, found, boxes) → average precision
Precision = Callable[[np.ndarray, np.ndarray, int], float | None]


@dataclass(frozen=True, eq=False)
class BoxSums:
    """What a set of found boxes adds up to, for K classes, T thresholds and B bins of scores.

        sums = zero(classes=2)
        sums = sums + sums_of(outputs, targets, most=100)
        sums.summary()["map_50"]

    Attributes:
        classes: K.
        examples: images.
        boxes: `(K,)` int64, true boxes.
        found: `(K, B)` int64, found boxes by score.
        hits: `(K, T, B)` int64, those of them that are right at each threshold of IoU.
        bins: `(IMAGE_BINS,)` int64, images by their own average precision at an IoU of 0.5.
        loss: Σ of the images' losses, nats.
    """

    classes: int
    examples: int
    boxes: np.ndarray
    found: np.ndarray
    hits: np.ndarray
    bins: np.ndarray
    loss: float

    def __add__(self, other: BoxSums) -> BoxSums:
        if self.classes != other.classes:
            both = f"{self.classes} and over {other.classes} classes"
            raise ValueError(f"sums over {both} do not add up")
        return add_fields(self, other, but=("classes",))

    @property
    def cells(self) -> int:
        """Return how many bins of images there are; an image is in one."""
        return IMAGE_BINS

    def within(self, other: BoxSums) -> bool:
        """Whether these can be sums of some of the predictions that `other` sums up."""
        return lies_within(self, other, totals=("boxes", "found", "hits", "bins", "loss"))

    def only_counts(self, noise: np.ndarray) -> BoxSums:
        """Return the images by their own average precision alone, with noise `(IMAGE_BINS,)` added,
        as whole numbers not below 0.

        However many boxes an image has, it is in one bin; all but `image_ap_50` is undefined.
        """
        noisy = np.rint(self.bins + noise).clip(0, MOST_IMAGES // IMAGE_BINS).astype(np.int64)
        return replace(zero(self.classes), bins=noisy, examples=int(noisy.sum()))

    def counts(self) -> list[list[int]]:
        """Return nothing: an image's answer is no class."""
        return []

    # ── what is reported to people ────────────────────────────────────────────────────────────────
    @property
    def has_only_counts(self) -> bool:
        """Whether these are sums that `only_counts` gave: no box, and no place with a loss."""
        return self.loss == 0 and not self.boxes.any() and not self.found.any()

    def summary(self) -> dict[str, float | int | None]:
        """Return the metrics; None where one is undefined.

        map_50 and map: the mean over classes with a box, and over thresholds, of the average
        precision, the least that any order of tied scores gives; map_50_most: the most;
        image_ap_50: the mean over images of their own, to half a bin; loss: mean over images, nats;
        boxes: true ones; examples: images.
        """
        metrics: dict[str, float | int | None] = dict.fromkeys(METRICS)
        metrics["map_50_most"] = None
        metrics["examples"] = self.examples
        metrics["boxes"] = int(self.boxes.sum())
        if self.examples == 0:
            return metrics
        middles = (np.arange(IMAGE_BINS) + 0.5) / IMAGE_BINS
        metrics["image_ap_50"] = float(self.bins @ middles) / self.examples
        if self.has_only_counts:
            return metrics
        metrics["map_50"] = self.mean_precision(least_average_precision, (0,))
        metrics["map"] = self.mean_precision(least_average_precision, range(len(THRESHOLDS)))
        metrics["map_50_most"] = self.mean_precision(most_average_precision, (0,))
        metrics["loss"] = self.loss / self.examples
        return metrics

    def mean_precision(self, precision: Precision, levels: range | tuple[int, ...]) -> float | None:
        """Return the mean average precision over thresholds and classes with a box; None: no class
        has one.
        """
        values: list[float] = []
        for number in range(self.classes):
            for level in levels:
                hits = self.hits[number, level]
                value = precision(hits, self.found[number], int(self.boxes[number]))
                if value is not None:
                    values.append(value)
        return float(np.mean(values)) if values else None

    def to_flat(self) -> dict[str, Any]:
        """Return plain numbers and lists for the wire."""
        return {
            "examples": self.examples,
            "loss": self.loss,
            "boxes": self.boxes.tolist(),
            "found": self.found.flatten().tolist(),
            "hits": self.hits.flatten().tolist(),
            "bins": self.bins.tolist(),
        }


def zero(classes: int) -> BoxSums:
    """Return the sums of no predictions."""
    return BoxSums(
        classes=classes,
        examples=0,
        boxes=np.zeros(classes, np.int64),
        found=np.zeros((classes, SCORE_BINS), np.int64),
        hits=np.zeros((classes, len(THRESHOLDS), SCORE_BINS), np.int64),
        bins=np.zeros(IMAGE_BINS, np.int64),
        loss=0.0,
    )


@torch.no_grad()
def sums_of(outputs: Tensor, targets: Tensor, most: int) -> BoxSums:
    """Return the sums of a batch of predictions.

    Args:
        outputs: `(n, K + 7, P)`, see `box_places.py`.
        targets: `(n, M, 5)`: class or −1 for none, left, top, right, bottom.
        most: boxes that are taken of an image's answer.

    Raises:
        Refused: outputs that are not finite.
    """
    places = read_places(outputs.float())
    if not bool(torch.isfinite(outputs).all()):
        raise Refused(Code.OUTPUT, "the model's outputs are not finite")
    losses = box_losses(outputs.float(), targets).nan_to_num(nan=MOST_LOSS).clamp(0, MOST_LOSS)
    total = zero(places.classes)
    for number in range(len(outputs)):
        detections = find_boxes(places, number, most)
        true = targets[number][targets[number, :, 0] >= 0].numpy()
        one = count_boxes(detections, true, total.classes)
        total = total + replace(one, loss=float(losses[number]))
    return total


def count_boxes(detections: Detections, true: np.ndarray, classes: int) -> BoxSums:
    """Return the sums of one image, without its loss.

    Args:
        true: `(g, 5)`: class, left, top, right, bottom.
    """
    one = replace(zero(classes), examples=1)
    for number in range(classes):
        own = detections.classes == number
        known = true[true[:, 0] == number, 1:]
        one.boxes[number] = len(known)
        bins = bin_scores(detections.scores[own])
        np.add.at(one.found[number], bins, 1)
        for level, is_right in enumerate(match_boxes(detections.boxes[own], known)):
            np.add.at(one.hits[number, level], bins[is_right], 1)
    one.bins[bin_of(precision_of_image(one, detections))] = 1
    return one


def precision_of_image(one: BoxSums, detections: Detections) -> float:
    """Return an image's own average precision at an IoU of 0.5, the mean over the classes in it;
    without a box 1 where none is told for sure, else 0.
    """
    own = one.mean_precision(least_average_precision, (0,))
    if own is None:
        own = 0.0 if (detections.scores >= SURE).any() else 1.0
    return own


def bin_of(precision: float) -> int:
    """Return the bin 0 … IMAGE_BINS − 1 of an image's average precision."""
    return min(int(precision * IMAGE_BINS), IMAGE_BINS - 1)
