"""A linear head for each place of an image: what a mask's closed form solves for.

A place is described by every map brought to the image's own grid, and by means of the image around
it. Linear interpolation and a linear head may be exchanged, so the head is taken on each map first:
nothing of the full width is ever made to predict. Under differential privacy it is, an image after
the other: the features of a place are brought to norm 1, and that cannot be exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.errors import Code, Refused
from fedgraft.common.model.stage_maps import MapLayout

# sides of the squares around a place over which the image is averaged
SQUARES = (1, 5, 15)
# (n, C, H, W) and (n, C, D, H, W) are enlarged so
MODES = {2: "bilinear", 3: "trilinear"}
Standardise = Callable[[Tensor], Tensor]


class PixelHead(nn.Linear):
    """Packed maps (n, values) → logits (n, classes, *grid).

        head = PixelHead(layout, classes=2)
        head(maps(images)).shape  # (n, 2, 256, 256)

    Weight `(classes, d)` and bias `(classes,)` are on the features of a place, as `read_pixels`
    gives them.

    Args:
        layout: of the maps of an example.
        classes: outputs for each place.
        more: layouts of examples of other sizes, such as crops.
        standardise: features (…, d) → the same centred, whitened and of norm 1, where the network
            has a public reference. That one belongs to the network: it is no part of the head.
    """

    def __init__(
        self,
        layout: MapLayout,
        classes: int,
        more: tuple[MapLayout, ...] = (),
        standardise: Standardise | None = None,
    ) -> None:
        super().__init__(count_of_place(layout), classes, device="meta")
        self.weight = nn.Parameter(torch.zeros(classes, self.in_features))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.layouts = index_layouts((layout, *more))
        self.grid = layout.grid
        self.standardise = standardise

    def count_places(self, stride: int) -> int:
        """Return how many places of an example `read_pixels` takes."""
        return math.prod(len(range(side)[pick_places(side, stride)]) for side in self.grid)

    def forward(self, packed: Tensor) -> Tensor:
        """Return logits (n, classes, *grid)."""
        if self.standardise is not None:
            return self._tell_places(packed, self.standardise)
        layout = find_layout(self.layouts, packed)
        maps = describe_places(layout.unpack(packed))
        parts = self.weight.split([each.shape[1] for each in maps], dim=1)
        places = (1,) * len(layout.grid)
        logits = self.bias.view(1, -1, *places)
        for values, weight in zip(maps, parts, strict=True):
            logits = logits + enlarge(torch.einsum("kc,nc...->nk...", weight, values), layout.grid)
        return logits

    def _tell_places(self, packed: Tensor, standardise: Standardise) -> Tensor:
        """Return logits whose features are made in full: of one image after another, of one row of
        it, or of one slice of a volume, after another.
        """
        layout = find_layout(self.layouts, packed)
        logits: list[Tensor] = []
        for image in packed.split(1):
            maps = [enlarge(each, layout.grid) for each in describe_places(layout.unpack(image))]
            rows: list[Tensor] = []
            for row in zip(*(each.split(1, dim=2) for each in maps), strict=True):
                features = standardise(torch.cat(row, dim=1).movedim(1, -1))
                rows.append(F.linear(features, self.weight, self.bias).movedim(-1, 1))
            logits.append(torch.cat(rows, dim=2))
        return torch.cat(logits)

    @torch.no_grad()
    def read_pixels(self, packed: Tensor, stride: int = 1) -> Tensor:
        """Return the features of every `stride`-th place each way `(n, d, *grid / stride)`.

        The first is half a stride from the edge: which places are taken depends on the grid alone.
        """
        layout = find_layout(self.layouts, packed)
        grid = tuple(pick_places(side, stride) for side in layout.grid)
        maps: list[Tensor] = []
        for values in describe_places(layout.unpack(packed)):
            maps.append(enlarge(values, layout.grid)[(..., *grid)])
        features = torch.cat(maps, dim=1)
        if self.standardise is None:
            return features
        return self.standardise(features.movedim(1, -1)).movedim(-1, 1)


def count_of_place(layout: MapLayout) -> int:
    """Return how many features a place has."""
    image, *stages = layout.channels
    return sum(stages) + len(SQUARES) * image


def pick_places(side: int, stride: int) -> slice:
    """Return which of a side's places are taken."""
    return slice(min(stride // 2, side - 1), None, stride)


def pick_answers(mask: Tensor, stride: int) -> Tensor:
    """Return the answers `(m,)` of those places of a mask `(*grid,)` that `read_pixels` takes, in
    its order.
    """
    return mask[tuple(pick_places(side, stride) for side in mask.shape)].flatten()


def describe_places(maps: list[Tensor]) -> list[Tensor]:
    """Return the maps that a place's features are of: means of the image, and the stages'."""
    image, *stages = maps
    means = [image] + [mean_around(image, side) for side in SQUARES[1:]]
    return [*means, *stages]


def mean_around(image: Tensor, side: int) -> Tensor:
    """Return the mean of the square around each place, of what of it lies in the image; of a volume
    that of its slice.
    """
    window = (1,) * (image.ndim - 4) + (side, side)
    pad = tuple(each // 2 for each in window)
    mean = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    return mean(image, window, stride=1, padding=pad, count_include_pad=False)


def enlarge(values: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return maps (n, C, *places) on a grid, by linear interpolation."""
    if tuple(values.shape[2:]) == grid:
        return values
    return F.interpolate(values, grid, mode=MODES[len(grid)], align_corners=False)


def index_layouts(layouts: tuple[MapLayout, ...]) -> Mapping[int, MapLayout]:
    """Return layouts by the length of their rows."""
    return {layout.values: layout for layout in layouts}


def find_layout(layouts: Mapping[int, MapLayout], packed: Tensor) -> MapLayout:
    """Return the layout of packed maps. Raise `Refused` for images of a size that was not agreed
    on.
    """
    layout = layouts.get(packed.shape[1])
    if layout is None:
        raise Refused(Code.MISMATCH, "maps of an image of another size than the plan's")
    return layout
