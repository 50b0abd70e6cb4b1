"""Which things are where? Boxes around them, each of a class, with a score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.aligned_boxes import align_boxes
from fedgraft.common.inputs.material import Preparation
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.box_losses import box_losses
from fedgraft.common.tasks.box_places import SIDES, find_boxes, read_places
from fedgraft.common.tasks.box_sums import SURE, BoxSums, sums_of, zero
from fedgraft.common.tasks.box_sums_from_wire import box_sums_from_flat
from fedgraft.common.tasks.task import MAPS_AT_ONCE, BoxReader, LabelledSource, Task

# class and four sides
NUMBERS = 5
NO_CLASS = -1.0


# ── boxes as the data have them ───────────────────────────────────────────────────────────────────
def read_boxes(source: LabelledSource) -> BoxReader:
    """Return the boxes of a source. Raise `UserError` where it has none."""
    if source.boxes is None:
        what = "records without boxes"
        remedy = "give a file in COCO's format (.json): images, annotations, categories"
        raise UserError(what, where=source.where, remedy=remedy)
    return source.boxes


def number_categories(source: LabelledSource, task: TaskSection) -> dict[int, int]:
    """Return the class of each category of a source that boxes are of.

    The plan names a category by what `labels` says for its class, its number or its name; without
    them by the class's own name.

    Raises:
        UserError: a category that is none of the plan's classes.
    """
    known = {label: number for number, label in enumerate(task.labels or task.classes)}
    boxes = read_boxes(source)
    used = {int(category) for own in boxes.records for category in np.unique(own[:, 0])}
    numbers: dict[int, int] = {}
    for category in sorted(used):
        name = boxes.categories[category]
        if category in known or name in known:
            numbers[category] = known.get(category, known.get(name, 0))
            continue
        planned = ", ".join(map(str, known))
        what = f"boxes of category {category} ({name!r}), and the plan's classes are {planned}"
        remedy = "name it under task.classes (task.labels: as the data call them), or take them out"
        raise UserError(what, where=source.where, remedy=remedy)
    return numbers


def find_targets(source: LabelledSource, task: TaskSection) -> np.ndarray:
    """Return each record's boxes in its image's own pixels, float32 `(n, most, 5)`: class or −1 for
    none, left, top, right, bottom.

    Raises:
        UserError: an image with more boxes than agreed on, or a box of no class of the plan.
    """
    numbers = number_categories(source, task)
    boxes = read_boxes(source)
    most = task.box_section.most
    targets = np.full((len(boxes.records), most, NUMBERS), NO_CLASS, np.float32)
    targets[..., 1:] = 0
    for row, own in enumerate(boxes.records):
        if len(own) > most:
            what = f"{len(own)} boxes, and task.boxes.most is {most}"
            remedy = "write a higher number there, which all sites agree on"
            raise UserError(what, where=source.place(row), remedy=remedy)
        targets[row, : len(own)] = own
        targets[row, : len(own), 0] = [numbers[int(category)] for category in own[:, 0]]
    return targets


def align_targets(
    source: LabelledSource, rows: np.ndarray, preparation: Preparation, task: TaskSection
) -> Tensor:
    """Return the boxes of prepared records, float32 `(n, most, 5)`."""
    boxes = read_boxes(source)
    targets = torch.from_numpy(find_targets(source, task)[rows])
    for number, row in enumerate(rows.tolist()):
        targets[number] = align_boxes(targets[number], boxes.sides[row], preparation)
    return targets


def find_classes(targets: np.ndarray, task: TaskSection) -> np.ndarray:
    """Return which classes are in each image, 1 or 0, int64 `(n, K)`."""
    numbers = np.arange(len(task.classes))
    return (targets[..., :1] == numbers).any(1).astype(np.int64)


def highest_class(targets: np.ndarray, task: TaskSection) -> np.ndarray:
    """Return the last class that is in each image, int64 `(n,)`, 0 for none: what splits deal
    by.
    """
    return targets[..., 0].max(1).clip(0).astype(np.int64)


# ── answers ───────────────────────────────────────────────────────────────────────────────────────
def tell_counts(outputs: Tensor, task: TaskSection) -> Tensor:
    """Return how many boxes of each class an image has that are told for sure, `(n, K)`."""
    places = read_places(outputs)
    counts = torch.zeros(len(outputs), len(task.classes))
    for number in range(len(outputs)):
        found = find_boxes(places, number, task.box_section.most)
        sure = found.classes[found.scores >= SURE]
        counts[number] = torch.bincount(torch.from_numpy(sure), minlength=len(task.classes))
    return counts


def tell_sums(outputs: Tensor, targets: Tensor, task: TaskSection) -> BoxSums:
    """Return the sums of a batch of predictions. Raise `Refused` as `sums_of`."""
    return sums_of(outputs, targets, task.box_section.most)


def read_sums(flat: Mapping[str, Any], task: TaskSection) -> BoxSums:
    """Return sums from the wire. Raise `ValueError` for what no predictions could give."""
    return box_sums_from_flat(flat, len(task.classes), task.box_section.most)


def probe_boxes(task: TaskSection) -> Tensor:
    """Return two images' boxes, one each, to try gradients out with."""
    targets = torch.zeros(2, task.box_section.most, NUMBERS)
    targets[..., 0] = NO_CLASS
    side = 4.0 * task.box_section.strides[0]
    targets[0, 0] = torch.tensor([0.0, 0.0, 0.0, side, side])
    targets[1, 0] = torch.tensor([0.0, 1.0, 2.0, side, side])
    return targets


DETECTION = Task(
    name="detection",
    takes="maps",
    outputs=lambda task: len(task.classes) + SIDES,
    loss=lambda outputs, targets: box_losses(outputs, targets).mean(),
    losses=box_losses,
    zero=lambda task: zero(len(task.classes)),
    sums=tell_sums,
    read_sums=read_sums,
    targets=find_targets,
    strata=highest_class,
    counted=lambda task: task.classes,
    count=lambda targets, task: find_classes(targets, task).sum(0),
    predict=tell_counts,
    columns=lambda task: tuple(f"boxes_{name}" for name in task.classes),
    answer=None,
    probes=probe_boxes,
    describe=lambda task: f"to find with boxes: {', '.join(task.classes)}",
    aligned=align_targets,
    at_once=MAPS_AT_ONCE,
    reports="boxes by class, histograms of scores of right and wrong ones, losses",
)
