"""Where is it? A class for each place of an image or a volume, the first being background."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.aligned_masks import align_mask
from fedgraft.common.inputs.material import Preparation
from fedgraft.common.inputs.volume import Volume
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.mask_closed_form import MASK_HEAD
from fedgraft.common.tasks.mask_sums import MaskSums, sums_of, zero
from fedgraft.common.tasks.mask_sums_from_wire import mask_sums_from_flat
from fedgraft.common.tasks.task import MAPS_AT_ONCE, LabelledSource, MaskReader, Task

# pixels that soften the Dice of a class that an image lacks
SMOOTH = 1.0
# values of 8 bits
VALUES = 256


# ── loss ──────────────────────────────────────────────────────────────────────────────────────────
def mask_losses(logits: Tensor, masks: Tensor) -> Tensor:
    """Logits `(n, K, *grid)`, masks `(n, *grid)`, or `(n,)` of one class everywhere → loss of each
    image `(n,)`: the mean
    cross-entropy of its places, nats, and 1 − the mean soft Dice of its classes but the background
    (Milletari et al. 2016, "V-Net", section 3; the sum of both: Isensee et al. 2021, nnU-Net).
    """
    targets = masks.to(torch.int64)
    if targets.ndim == 1:
        grid = logits.shape[2:]
        targets = targets.view(-1, *(1 for _ in grid)).expand(-1, *grid)
    entropies = F.cross_entropy(logits, targets, reduction="none").flatten(1).mean(1)
    shares = logits.softmax(1)[:, 1:].flatten(2)
    truth = F.one_hot(targets, logits.shape[1]).movedim(-1, 1)[:, 1:].flatten(2).to(shares.dtype)
    both = (shares * truth).sum(2)
    dice = (2 * both + SMOOTH) / (shares.sum(2) + truth.sum(2) + SMOOTH)
    return entropies + 1 - dice.mean(1)


# ── masks as the data have them ───────────────────────────────────────────────────────────────────
def list_values(task: TaskSection) -> tuple[int, ...]:
    """Return the value of each class in the masks. Raise `UserError` for what no mask holds."""
    if task.labels is None:
        return tuple(range(len(task.classes)))
    values: list[int] = []
    for number, label in enumerate(task.labels):
        if not isinstance(label, int) or not 0 <= label < VALUES:
            what = f"{label!r}, and masks hold whole numbers from 0 to {VALUES - 1}"
            raise UserError(what, where=f"task.labels[{number}]", remedy="write the class's number")
        values.append(label)
    return tuple(values)


def read_masks(source: LabelledSource) -> MaskReader:
    """Return the masks of a source. Raise `UserError` where it has none."""
    if source.masks is None:
        what = "records without masks"
        remedy = (
            "give a list (.csv) with the columns path and mask, a folder with images/ and masks/,"
            " or an .npz with images and masks"
        )
        raise UserError(what, where=source.where, remedy=remedy)
    return source.masks


def find_classes(source: LabelledSource, task: TaskSection) -> np.ndarray:
    """Return which classes are in each record's mask, 1 or 0, int64 `(n, K)`.

    Raises:
        UserError: a mask with a value that is no class.
    """
    known = {value: number for number, value in enumerate(list_values(task))}
    masks = read_masks(source)
    found = np.zeros((len(masks.values), len(task.classes)), np.int64)
    for row, values in enumerate(masks.values):
        unknown = [value for value in values if value not in known]
        if unknown:
            raise _say_unknown(unknown, source.place(row), task)
        found[row, [known[value] for value in values]] = 1
    return found


def _say_unknown(unknown: list[int], where: str, task: TaskSection) -> UserError:
    planned = ", ".join(map(str, list_values(task)))
    listed = ", ".join(map(str, unknown[:8]))
    what = f"its mask holds {listed}, and the values of the plan's classes are {planned}"
    remedy = "write the value of each class in the masks, in their order: `labels: [0, 255]`"
    return UserError(what, where=where, remedy=f"{remedy} under task")


def align_masks(
    source: LabelledSource, rows: np.ndarray, preparation: Preparation, task: TaskSection
) -> Tensor:
    """Return the class of each place of prepared records, uint8 `(n, *grid)`."""
    masks = read_masks(source)
    numbers = torch.zeros(VALUES, dtype=torch.uint8)
    for number, value in enumerate(list_values(task)):
        numbers[value] = number
    aligned: list[Tensor] = []
    for row in rows.tolist():
        mask = masks.read(row)
        if isinstance(mask, Volume):
            classes: Tensor | Volume = Volume(numbers[mask.values.long()], mask.spacing)
        else:
            classes = numbers[mask.long()]
        aligned.append(align_mask(classes, preparation))
    return torch.stack(aligned) if aligned else torch.empty(0, dtype=torch.uint8)


def highest_class(targets: np.ndarray, task: TaskSection) -> np.ndarray:
    """Return the last class that is in each mask, int64 `(n,)`: what splits deal by."""
    numbers = np.arange(len(task.classes))
    return (targets * numbers).max(1, initial=0)


# ── answers ───────────────────────────────────────────────────────────────────────────────────────
def tell_shares(logits: Tensor, task: TaskSection) -> Tensor:
    """Return which share of an image's places is of each class, `(n, K)`."""
    answers = F.one_hot(logits.argmax(1), len(task.classes)).flatten(1, -2)
    return answers.to(torch.float32).mean(1)


def tell_sums(logits: Tensor, masks: Tensor, task: TaskSection) -> MaskSums:
    """Return the sums of a batch of predictions. Raise `Refused` as `sums_of`."""
    return sums_of(logits, masks)


def read_sums(flat: Mapping[str, Any], task: TaskSection) -> MaskSums:
    """Return sums from the wire. Raise `ValueError` for what no predictions could give."""
    return mask_sums_from_flat(flat, len(task.classes))


SEGMENTATION = Task(
    name="segmentation",
    takes="maps",
    outputs=lambda task: len(task.classes),
    loss=lambda outputs, targets: mask_losses(outputs, targets).mean(),
    losses=mask_losses,
    zero=lambda task: zero(len(task.classes)),
    sums=tell_sums,
    read_sums=read_sums,
    targets=find_classes,
    strata=highest_class,
    counted=lambda task: task.classes,
    count=lambda targets, task: targets.sum(0),
    predict=tell_shares,
    columns=lambda task: tuple(f"share_{name}" for name in task.classes),
    answer=None,
    # one class everywhere, whatever the grid
    probes=lambda task: torch.tensor([0, 1]),
    describe=lambda task: f"to outline: {', '.join(task.classes[1:])}",
    closed_form=MASK_HEAD,
    aligned=align_masks,
    at_once=MAPS_AT_ONCE,
    reports="overlap and distance of edges of each image by class, added up, right pixels, losses",
)
