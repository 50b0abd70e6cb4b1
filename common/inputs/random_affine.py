"""Images turned, moved and made larger or smaller at random, by torchvision; with their masks."""

from __future__ import annotations

import torch
from torch import Tensor

# at most: degrees, share of a side, share of the size
TURN = 10.0
MOVE = 0.05
RESIZE = 0.1


def draw_affine(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images `(n, channels, H, W)`, each mirrored or not, turned by up to 10 degrees, moved
    by up to 5 % of its sides and 10 % larger or smaller, by its own draws from `generator`; what
    comes into view is as dark as its darkest pixel.
    """
    changed: list[Tensor] = []
    for image in images:
        draws = torch.rand(5, generator=generator).tolist()
        changed.append(move_image(image, draws))
    return torch.stack(changed) if changed else images


def draw_affine_pairs(
    images: Tensor, masks: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the same with the images' masks `(n, H, W)`, each moved as its image; what comes into
    view is background.
    """
    changed: list[Tensor] = []
    moved: list[Tensor] = []
    for image, mask in zip(images, masks, strict=True):
        draws = torch.rand(5, generator=generator).tolist()
        changed.append(move_image(image, draws))
        moved.append(move_mask(mask, draws))
    return torch.stack(changed), torch.stack(moved)


def move_image(image: Tensor, draws: list[float]) -> Tensor:
    """Return an image `(channels, H, W)` changed by five numbers between 0 and 1."""
    return _move(image, draws, image.amin((-2, -1)).tolist(), "BILINEAR")


def move_mask(mask: Tensor, draws: list[float]) -> Tensor:
    """Return a mask `(H, W)` changed as `move_image` changes its image: classes of the nearest
    pixels.
    """
    return _move(mask[None], draws, [0.0], "NEAREST")[0]


def _move(image: Tensor, draws: list[float], fill: list[float], interpolation: str) -> Tensor:
    # it takes a second to import, and few plans augment
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as transforms

    mirrors, turn, across, down, size = draws
    if mirrors < 0.5:
        image = image.flip(-1)
    height, width = image.shape[-2:]
    return transforms.affine(
        image,
        angle=_between(turn, TURN),
        translate=[_between(across, MOVE) * width, _between(down, MOVE) * height],
        scale=1 + _between(size, RESIZE),
        shear=[0.0, 0.0],
        interpolation=InterpolationMode[interpolation],
        fill=fill,
    )


def _between(drawn: float, most: float) -> float:
    """Return a number between −most and most for one between 0 and 1."""
    return (2 * drawn - 1) * most
