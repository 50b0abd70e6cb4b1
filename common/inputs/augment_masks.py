"""Images and their masks changed at random together: every pixel keeps its class."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.image import augment_images
from fedgraft.common.inputs.random_affine import draw_affine_pairs

# of a side that a patch keeps: 1 / PATCH
PATCH = 2


def augment_images_and_masks(
    batch: Batch, masks: Tensor, augment: str, generator: torch.Generator
) -> tuple[Batch, Tensor]:
    """Return images `(n, channels, H, W)` and masks `(n, H, W)` changed by the same draws, each
    pair by its own, from `generator`.

    `patches`: a patch of half each side, anywhere in the image, mirrored and turned by quarters:
    for images that have no upside.
    """
    if augment == "none":
        return batch, masks
    images = batch.only
    if augment == "affine":
        images, masks = draw_affine_pairs(images, masks, generator)
        return Batch({"image": images}), masks
    # pixels are moved, not mixed: a mask goes along as one more channel
    together = torch.cat([images, masks[:, None].to(images.dtype)], dim=1)
    if augment == "patches":
        together = draw_patches(together, generator)
    else:
        together = augment_images(Batch({"image": together}), augment, generator).only
    return Batch({"image": together[:, :-1]}), together[:, -1].to(masks.dtype)


def draw_patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return a patch of each image `(n, channels, S, S)`, of half its side, mirrored or not and
    turned by 0 to 3 quarters: `(n, channels, S / 2, S / 2)`.
    """
    side = images.shape[-1] // PATCH
    farthest = images.shape[-1] - side
    corners = torch.randint(0, farthest + 1, (len(images), 2), generator=generator).tolist()
    mirrored = torch.randint(0, 2, (len(images),), generator=generator).tolist()
    quarters = torch.randint(0, 4, (len(images),), generator=generator).tolist()
    patches: list[Tensor] = []
    for image, (top, left), mirrors, turns in zip(images, corners, mirrored, quarters, strict=True):
        patch = image[:, top : top + side, left : left + side]
        if mirrors:
            patch = patch.flip(-1)
        patches.append(patch.rot90(turns, (-2, -1)))
    return torch.stack(patches)
