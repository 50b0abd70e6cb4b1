"""Images changed at random, and their masks with them: every pixel keeps its class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.random_affine import draw_affine, draw_affine_pairs

# pixels that a crop may move by
PADDING = 4
# of a side that a patch keeps: 1 / PATCH
PATCH = 2


def augment_images(batch: Batch, augment: str, generator: torch.Generator) -> Batch:
    """Flip, flip and crop (4 pixels of padding), or turn, move and resize images `(n, channels, H,
    W)`, each by its own draw from `generator`.
    """
    if augment == "none":
        return batch
    images = batch.only
    if augment == "affine":
        return Batch({"image": draw_affine(images, generator)})
    is_flipped = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(is_flipped[:, None, None, None], images.flip(-1), images)
    if augment == "flip":
        return Batch({"image": images})
    return Batch({"image": _crop_at_random(images, generator)})


def _crop_at_random(images: Tensor, generator: torch.Generator) -> Tensor:
    size = images.shape[-1]
    padded = F.pad(images, (PADDING, PADDING, PADDING, PADDING))
    corners = torch.randint(0, 2 * PADDING + 1, (len(images), 2), generator=generator)
    crops: list[Tensor] = []
    for image, (top, left) in zip(padded, corners.tolist(), strict=True):
        crops.append(image[:, top : top + size, left : left + size])
    return torch.stack(crops)


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
