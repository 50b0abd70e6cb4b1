"""Images mirrored at random, and their boxes with them."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgraft.common.inputs.batch import Batch


def augment_images_and_boxes(
    batch: Batch, targets: Tensor, augment: str, generator: torch.Generator
) -> tuple[Batch, Tensor]:
    """Return images `(n, channels, H, W)` and their boxes `(n, M, 5)`, of `flip` about half of the
    pairs mirrored left and right, by draws from `generator`.

    Raises:
        ValueError: a change that boxes do not go along with.
    """
    if augment == "none":
        return batch, targets
    if augment != "flip":
        raise ValueError(f"{augment}: boxes are only mirrored")
    images = batch.only
    is_flipped = torch.rand(len(images), generator=generator) < 0.5
    mirrored = torch.where(is_flipped[:, None, None, None], images.flip(-1), images)
    changed = torch.where(is_flipped[:, None, None], mirror(targets, images.shape[-1]), targets)
    return Batch({"image": mirrored}), changed


def mirror(targets: Tensor, width: int) -> Tensor:
    """Return boxes `(…, 5)` of images of a width, left and right exchanged."""
    classes, left, top, right, bottom = targets.unbind(-1)
    return torch.stack([classes, width - right, top, width - left, bottom], dim=-1)
