"""Boxes of whole images in their own pixels, whatever size a network sees.

An image is brought to the scale that was trained on and looked at in overlapping windows of the
network's side. Of each box the window tells in whose own part its middle lies: half of what two
windows share is the one's, half the other's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.model.shared_model import SharedModel
from fedgraft.common.model.whole_masks import AT_ONCE, cover_side
from fedgraft.common.tasks.box_places import Detections, find_boxes, keep_best, read_places


@dataclass(frozen=True, eq=False)
class Window:
    """Where a window begins, and its own part of the image: `(x, y)` each, pixels."""

    corner: np.ndarray
    low: np.ndarray
    high: np.ndarray


@torch.inference_mode()
def find_in_image(shared: SharedModel, image: Tensor) -> Detections:
    """Return the boxes of an image `(channels, H, W)` in its own pixels, by falling scores.

    Raises:
        UserError: a model that takes no images.
    """
    preparation = shared.preprocess
    if not isinstance(preparation, Preprocess) or preparation.crop is None:
        raise UserError("this model finds no boxes", where="predict", remedy="give images")
    side = preparation.crop
    most = shared.plan.task.box_section.most
    whole = replace(preparation, crop=None)(image[None]).only[0]
    height, width = whole.shape[-2:]
    windows = place_windows(height, width, side)
    parts: list[Detections] = []
    for start in range(0, len(windows), AT_ONCE):
        some = windows[start : start + AT_ONCE]
        cuts = [cut_window(whole, window, side) for window in some]
        places = read_places(shared.model(Batch({"image": torch.stack(cuts)})).cpu())
        for number, window in enumerate(some):
            parts.append(keep_own(find_boxes(places, number, most, side), window))
    kept = join_parts(parts, most)
    scale = np.array([image.shape[-1] / width, image.shape[-2] / height] * 2, np.float32)
    return replace(kept, boxes=kept.boxes * scale)


def place_windows(height: int, width: int, side: int) -> list[Window]:
    """Return windows that cover an image."""
    down = share_out(cover_side(height, side), height, side)
    across = share_out(cover_side(width, side), width, side)
    windows: list[Window] = []
    for (y, top, bottom), (x, left, right) in itertools.product(down, across):
        corner = np.array([x, y], np.float32)
        windows.append(Window(corner, np.array([left, top]), np.array([right, bottom])))
    return windows


def cut_window(whole: Tensor, window: Window, side: int) -> Tensor:
    """Return what a window sees of an image `(channels, H, W)`."""
    left, top = window.corner.astype(int).tolist()
    return whole[:, top : top + side, left : left + side]


def keep_own(found: Detections, window: Window) -> Detections:
    """Return the boxes of a window whose middle lies in its own part, in the image's pixels."""
    boxes = found.boxes + np.tile(window.corner, 2)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    is_own = ((middles >= window.low) & (middles < window.high)).all(1)
    return Detections(boxes[is_own], found.scores[is_own], found.classes[is_own])


def join_parts(parts: Sequence[Detections], most: int) -> Detections:
    """Return the best boxes of all windows."""
    boxes = torch.from_numpy(np.concatenate([part.boxes for part in parts]))
    scores = torch.from_numpy(np.concatenate([part.scores for part in parts]))
    classes = torch.from_numpy(np.concatenate([part.classes for part in parts]))
    return keep_best(boxes, scores, classes, most)


def share_out(starts: list[int], length: int, side: int) -> list[tuple[int, float, float]]:
    """Return the beginning of each window, and from where to where its own part goes: to the
    middle of what it shares with its neighbours, the outer ones to the edges and beyond.
    """
    parts: list[tuple[int, float, float]] = []
    borders = [(first + side + second) / 2 for first, second in itertools.pairwise(starts)]
    # middles at the very edge are somebody's
    edges = [-1.0, *borders, length + 1.0]
    for number, start in enumerate(starts):
        parts.append((start, edges[number], edges[number + 1]))
    return parts
