"""Sums over masks that came over the wire: read, and held against one another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedgraft.common.tasks.mask_sums import (
    DICE_BINS,
    FARTHEST,
    MOST_IMAGES,
    MOST_PIXELS,
    ONE,
    STEP,
    MaskSums,
)

# so that no sum of many nodes' losses overflows
LARGEST_LOSS = 1e30
KEYS = {"examples", "loss", "dice", "iou", "surfaces", "distances", "bins", "pixels"}
Flat = Mapping[str, Any]


def mask_sums_from_flat(flat: Flat, classes: int) -> MaskSums:
    """Return the sums that `MaskSums.to_flat` wrote.

    Raises:
        ValueError: keys, types, sizes or values that no predictions could give, or totals that
            disagree.
    """
    if set(flat) != KEYS:
        odd = sorted(KEYS.symmetric_difference(map(str, flat)))
        raise ValueError(f"keys missing or unknown: {', '.join(odd)[:200]}")
    examples = flat["examples"]
    if not _is_count(examples, MOST_IMAGES):
        raise ValueError(f"examples is {str(examples)[:40]}; a count was agreed on")
    shown = classes - 1
    pixels = _read_counts(flat, "pixels", classes**2, examples * MOST_PIXELS)
    sums = MaskSums(
        classes=classes,
        examples=examples,
        dice=_read_counts(flat, "dice", shown, examples * ONE),
        iou=_read_counts(flat, "iou", shown, examples * ONE),
        surfaces=_read_counts(flat, "surfaces", shown, examples),
        distances=_read_counts(flat, "distances", shown, examples * FARTHEST * STEP),
        bins=_read_counts(flat, "bins", DICE_BINS, examples),
        pixels=pixels.reshape(classes, classes),
        loss=_read_loss(flat["loss"]),
    )
    check_mask_totals(sums)
    return sums


def check_mask_totals(sums: MaskSums) -> None:
    """Raise `ValueError` where parts of the sums cannot be of the same images."""
    if int(sums.bins.sum()) != sums.examples:
        raise ValueError("bins of Dice and examples disagree")
    if sums.has_only_counts:
        parts = (sums.dice, sums.iou, sums.surfaces, sums.distances)
        if any(part.any() for part in parts) or sums.loss:
            raise ValueError("overlaps of masks without a pixel")
        return
    if not sums.examples <= int(sums.pixels.sum()) <= sums.examples * MOST_PIXELS:
        raise ValueError("pixels and examples disagree")
    check_overlaps(sums)
    if (sums.distances > sums.surfaces * (FARTHEST * STEP)).any():
        raise ValueError("edges farther apart than a grid is wide")


def check_overlaps(sums: MaskSums) -> None:
    """Raise `ValueError` where Dice and intersection over union cannot be of the same images.

    Of one image IoU = D / (2 − D), a convex function of Dice D: its mean lies between that of the
    mean Dice and the mean Dice itself. Each was rounded to whole steps.
    """
    dice = sums.dice / ONE / sums.examples
    iou = sums.iou / ONE / sums.examples
    slack = 2.0 / ONE
    if (iou > dice + slack).any() or (iou < dice / (2 - dice) - slack).any():
        raise ValueError("Dice and intersection over union disagree")
    low = np.arange(DICE_BINS) / DICE_BINS
    mean = float(dice.mean())
    least = float(sums.bins @ low) / sums.examples
    if not least - slack <= mean <= least + 1 / DICE_BINS + slack:
        raise ValueError("bins of Dice and their sum disagree")
    # an image without a pixel in both masks has a Dice of 0, or of 1 where both are empty
    hits = np.diag(sums.pixels)[1:]
    if ((hits == 0) & (sums.dice % ONE != 0)).any():
        raise ValueError("overlaps without a pixel that is in both masks")


def _read_counts(flat: Flat, name: str, length: int, most: int) -> np.ndarray:
    values = flat[name]
    is_list = isinstance(values, list) and len(values) == length
    if not is_list or not all(_is_count(value, most) for value in values):
        raise ValueError(f"{name} is not a list of {length} counts of at most {most}")
    return np.array(values, np.int64)


def _read_loss(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 <= value <= LARGEST_LOSS:
        raise ValueError(
            f"loss is {str(value)[:40]}; a finite sum of cross-entropies was agreed on"
        )
    return float(value)


def _is_count(value: Any, most: int) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and 0 <= value <= most
