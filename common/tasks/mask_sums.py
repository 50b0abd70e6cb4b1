"""Metrics of masks as sums over images that merge across hospitals: two nodes' sums added equal
their pooled predictions' sums, to the bit.

What an image adds to them is bounded, however many pixels it has: its overlaps lie between 0 and 1
and are added as whole numbers of 2^−30, the distance of its edges as whole numbers of 2^−10 steps
of the grid. Class 0 is the background and has no overlap of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.errors import Code, Refused
from fedgraft.common.tasks.adding_sums import add_fields, lies_within
from fedgraft.common.tasks.mask_surfaces import hausdorff_95

# what an overlap of 1 is added as, and a distance of 1
ONE = 2**30
STEP = 2**10
# equal bins of an image's Dice, the last with 1 itself
DICE_BINS = 20
# images in one report, and pixels of one image: their product is inside int64
MOST_IMAGES = 2**20
MOST_PIXELS = 2**28
# no two places of a grid are farther apart, in steps
FARTHEST = 2**15
METRICS = ("dice", "iou", "hausdorff_95", "pixel_accuracy", "loss")


@dataclass(frozen=True, eq=False)
class MaskSums:
    """What a set of predicted masks adds up to, for K classes of which the first is background.

        sums = zero(classes=2)
        sums = sums + sums_of(logits, masks)
        sums.summary()["dice"], sums.summary()["hausdorff_95"]

    Attributes:
        classes: K.
        examples: images.
        dice: `(K − 1,)` int64, Σ of each class's Dice coefficient in units of 1 / ONE. A class that
            is neither in the mask nor predicted has 1; one that is in one of them alone 0.
        iou: `(K − 1,)` int64, the same of intersection over union.
        surfaces: `(K − 1,)` int64, images in which a class is in both masks: only there its edges
            have a distance.
        distances: `(K − 1,)` int64, Σ of these images' Hausdorff distances at 95 % in steps of the
            grid, in units of 1 / STEP.
        bins: `(DICE_BINS,)` int64, images by the mean of their Dice over the classes.
        pixels: `(K, K)` int64, counts by [true class, predicted class].
        loss: Σ of the images' mean losses, nats.
    """

    classes: int
    examples: int
    dice: np.ndarray
    iou: np.ndarray
    surfaces: np.ndarray
    distances: np.ndarray
    bins: np.ndarray
    pixels: np.ndarray
    loss: float

    def __add__(self, other: MaskSums) -> MaskSums:
        if self.classes != other.classes:
            both = f"{self.classes} and over {other.classes} classes"
            raise ValueError(f"sums over {both} do not add up")
        return add_fields(self, other, but=("classes",))

    @property
    def cells(self) -> int:
        """Return how many bins of Dice there are; an image is in one."""
        return DICE_BINS

    def within(self, other: MaskSums) -> bool:
        """Whether these can be sums of some of the predictions that `other` sums up."""
        return lies_within(
            self, other, totals=("dice", "iou", "surfaces", "distances", "bins", "pixels", "loss")
        )

    def only_counts(self, noise: np.ndarray) -> MaskSums:
        """Return the images by their Dice alone, with noise `(DICE_BINS,)` added, as whole numbers
        not below 0.

        All but the mean Dice, to half a bin, is undefined of such sums.
        """
        noisy = np.rint(self.bins + noise).clip(0, MOST_IMAGES // DICE_BINS).astype(np.int64)
        return replace(zero(self.classes), bins=noisy, examples=int(noisy.sum()))

    def counts(self) -> list[list[int]]:
        """Return nothing: an image's answer is no class."""
        return []

    # ── what is reported to people ────────────────────────────────────────────────────────────────
    @property
    def has_only_counts(self) -> bool:
        """Whether these are sums that `only_counts` gave."""
        return not self.pixels.any()

    def summary(self) -> dict[str, float | int | None]:
        """Return the metrics; None where one is undefined.

        dice and iou: the mean over images, then over the classes but the background; hausdorff_95:
        the mean over the images in which a class is in both masks, in steps of the grid, then over
        the classes; pixel_accuracy: share of the pixels; loss: mean over images, nats; examples:
        images; edges: images whose edges have a distance, of all classes.
        """
        metrics: dict[str, float | int | None] = dict.fromkeys(METRICS)
        metrics["examples"] = self.examples
        metrics["edges"] = int(self.surfaces.sum())
        if self.examples == 0:
            return metrics
        if self.has_only_counts:
            middles = (np.arange(DICE_BINS) + 0.5) / DICE_BINS
            metrics["dice"] = float(self.bins @ middles) / self.examples
            return metrics
        metrics["dice"] = float(self.dice.mean()) / ONE / self.examples
        metrics["iou"] = float(self.iou.mean()) / ONE / self.examples
        measured = self.surfaces > 0
        if measured.any():
            means = self.distances[measured] / self.surfaces[measured]
            metrics["hausdorff_95"] = float(means.mean()) / STEP
        metrics["pixel_accuracy"] = float(np.trace(self.pixels)) / float(self.pixels.sum())
        metrics["loss"] = self.loss / self.examples
        return metrics

    def to_flat(self) -> dict[str, Any]:
        """Return plain numbers and lists for the wire."""
        return {
            "examples": self.examples,
            "loss": self.loss,
            "dice": self.dice.tolist(),
            "iou": self.iou.tolist(),
            "surfaces": self.surfaces.tolist(),
            "distances": self.distances.tolist(),
            "bins": self.bins.tolist(),
            "pixels": self.pixels.flatten().tolist(),
        }


def zero(classes: int) -> MaskSums:
    """Return the sums of no predictions."""
    shown = classes - 1
    return MaskSums(
        classes=classes,
        examples=0,
        dice=np.zeros(shown, np.int64),
        iou=np.zeros(shown, np.int64),
        surfaces=np.zeros(shown, np.int64),
        distances=np.zeros(shown, np.int64),
        bins=np.zeros(DICE_BINS, np.int64),
        pixels=np.zeros((classes, classes), np.int64),
        loss=0.0,
    )


@torch.no_grad()
def sums_of(logits: Tensor, masks: Tensor) -> MaskSums:
    """Return the sums of a batch of predictions.

    Args:
        logits: `(n, K, *grid)`.
        masks: the true class of each place, integers `(n, *grid)`.

    Raises:
        Refused: logits that are not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        why = "the model's outputs are not finite (NaN, infinity): training diverged"
        raise Refused(Code.OUTPUT, f"{why}; lower train.optimizer.lr")
    total = zero(logits.shape[1])
    for each, mask in zip(logits, masks.to(torch.int64), strict=True):
        loss = float(F.cross_entropy(each[None].float(), mask[None]))
        total = total + compare_masks(each.argmax(0).numpy(), mask.numpy(), total.classes, loss)
    return total


def compare_masks(predicted: np.ndarray, true: np.ndarray, classes: int, loss: float) -> MaskSums:
    """Return the sums of one image.

    Args:
        predicted, true: the class of each place, int64 `(*grid,)`.
        loss: mean over its places, nats.
    """
    pixels = np.bincount((true * classes + predicted).ravel(), minlength=classes**2)
    pixels = pixels.reshape(classes, classes)
    one = replace(zero(classes), examples=1, pixels=pixels, loss=loss)
    overlaps: list[float] = []
    for number in range(1, classes):
        both = int(pixels[number, number])
        either = int(pixels[number].sum() + pixels[:, number].sum()) - both
        dice, iou = overlap_of(both, either)
        overlaps.append(dice)
        one.dice[number - 1] = round(dice * ONE)
        one.iou[number - 1] = round(iou * ONE)
        distance = hausdorff_95(predicted == number, true == number)
        if distance is not None:
            one.surfaces[number - 1] = 1
            one.distances[number - 1] = round(distance * STEP)
    one.bins[bin_of(float(np.mean(overlaps)))] = 1
    return one


def overlap_of(both: int, either: int) -> tuple[float, float]:
    """Return Dice coefficient (Dice 1945) and intersection over union (Jaccard 1912); 1 where
    neither mask has a place.

    Args:
        both, either: places in the intersection and in the union of two masks.
    """
    if either == 0:
        return 1.0, 1.0
    return 2 * both / (either + both), both / either


def bin_of(dice: float) -> int:
    """Return the bin 0 … DICE_BINS − 1 of an image's Dice."""
    return min(int(dice * DICE_BINS), DICE_BINS - 1)
