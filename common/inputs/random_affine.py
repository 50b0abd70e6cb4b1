"""Images turned, moved and made larger or smaller at random, by torchvision."""

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
    # it takes a second to import, and few plans augment
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as transforms

    changed: list[Tensor] = []
    for image in images:
        mirrors, turn, across, down, size = torch.rand(5, generator=generator).tolist()
        if mirrors < 0.5:
            image = image.flip(-1)
        height, width = image.shape[-2:]
        moved = transforms.affine(
            image,
            angle=_between(turn, TURN),
            translate=[_between(across, MOVE) * width, _between(down, MOVE) * height],
            scale=1 + _between(size, RESIZE),
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
            fill=image.amin((-2, -1)).tolist(),
        )
        changed.append(moved)
    return torch.stack(changed) if changed else images


def _between(drawn: float, most: float) -> float:
    """Return a number between −most and most for one between 0 and 1."""
    return (2 * drawn - 1) * most
