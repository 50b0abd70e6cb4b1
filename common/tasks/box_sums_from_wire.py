"""Sums over found boxes that came over the wire: read, and held against one another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedgraft.common.tasks.average_precision import SCORE_BINS
from fedgraft.common.tasks.box_matching import THRESHOLDS
from fedgraft.common.tasks.box_places import LEAST_SCORE
from fedgraft.common.tasks.box_sums import IMAGE_BINS, MOST_IMAGES, MOST_LOSS, BoxSums

KEYS = {"examples", "loss", "boxes", "found", "hits", "bins"}


def box_sums_from_flat(flat: Mapping[str, Any], classes: int, most: int) -> BoxSums:
    """Return the sums that `BoxSums.to_flat` wrote.

    Args:
        most: boxes that an image has at most, true or found.

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
    levels = len(THRESHOLDS)
    bound = examples * most
    found = _read_counts(flat, "found", classes * SCORE_BINS, bound)
    hits = _read_counts(flat, "hits", classes * levels * SCORE_BINS, bound)
    sums = BoxSums(
        classes=classes,
        examples=examples,
        boxes=_read_counts(flat, "boxes", classes, bound),
        found=found.reshape(classes, SCORE_BINS),
        hits=hits.reshape(classes, levels, SCORE_BINS),
        bins=_read_counts(flat, "bins", IMAGE_BINS, examples),
        loss=_read_loss(flat["loss"], examples * MOST_LOSS),
    )
    check_box_totals(sums, most)
    return sums


def check_box_totals(sums: BoxSums, most: int) -> None:
    """Raise `ValueError` where parts of the sums cannot be of the same images."""
    if int(sums.bins.sum()) != sums.examples:
        raise ValueError("bins of images and examples disagree")
    if sums.has_only_counts:
        if sums.hits.any():
            raise ValueError("right boxes without a box")
        return
    bound = sums.examples * most
    if int(sums.boxes.sum()) > bound or int(sums.found.sum()) > bound:
        raise ValueError(f"more than {most} boxes for each image")
    if sums.found[:, : int(LEAST_SCORE * SCORE_BINS)].any():
        raise ValueError(f"boxes with a score below {LEAST_SCORE}")
    if (sums.hits > sums.found[:, None]).any():
        raise ValueError("more right boxes than found ones")
    if (sums.hits.sum(2) > sums.boxes[:, None]).any():
        raise ValueError("more right boxes than true ones")


def _read_counts(flat: Mapping[str, Any], name: str, length: int, most: int) -> np.ndarray:
    values = flat[name]
    is_list = isinstance(values, list) and len(values) == length
    if not is_list or not all(_is_count(value, most) for value in values):
        raise ValueError(f"{name} is not a list of {length} counts of at most {most}")
    return np.array(values, np.int64)


def _read_loss(value: Any, most: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 <= value <= most:
        raise ValueError(f"loss is {str(value)[:40]}; a finite sum of losses was agreed on")
    return float(value)


def _is_count(value: Any, most: int) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and 0 <= value <= most
