"""An anchor-free head on the maps of a frozen network: what is trained where boxes are learnt.

A feature pyramid (Lin et al. 2017, figure 3) over the maps that are no finer than the first level;
at each level every place tells the classes and four sides of the box that it lies in (Tian et al.
2019, "FCOS", section 3.1). Levels have weights of their own, so each scale is learnt by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.errors import UserError
from fedgraft.common.model.map_decoder import draw_values
from fedgraft.common.model.pixel_head import enlarge, find_layout, index_layouts
from fedgraft.common.model.stage_maps import MapLayout

SIDES = 4
# a place tells a class before it has learnt anything (Lin et al. 2017, "Focal loss", section 3.3)
PRIOR = 0.01
# exponents of sides: no box is wider than this makes a stride
MOST_EXPONENT = 6.0


class BoxHead(nn.Module):
    """Packed maps (n, values) → outputs (n, classes + 7, places), see `tasks/box_places.py`.

        head = BoxHead(layout, outputs=1 + 4, strides=(8, 16), width=64, seed=7)
        head(maps(images)).shape  # (n, 8, 32 · 32 + 16 · 16)

    Args:
        layout: of the maps of an example, the image first.
        outputs: of a place: the classes' logits and four sides.
        strides: of the levels, rising, pixels.
        width: channels of the pyramid.
        seed: of the initial values: the same on every side, bit for bit.

    Raises:
        UserError: no map has the places of a level.
    """

    def __init__(
        self, layout: MapLayout, outputs: int, *, strides: Sequence[int], width: int, seed: int
    ) -> None:
        super().__init__()
        self.layouts = index_layouts((layout,))
        self.strides = tuple(strides)
        self.levels = find_levels(layout, self.strides)
        # one for each stage, of which a level may be one
        channels = layout.channels[1:]
        # drawn below: torch's own initialisation would move the global random state
        with torch.device("meta"):
            self.across = nn.ModuleList(nn.Conv2d(each, width, 1) for each in channels)
            self.mixing = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
            self.tower = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in strides)
            self.tell = nn.ModuleList(nn.Conv2d(width, outputs, 3, padding=1) for _ in strides)
        draw_values(self, seed)
        classes = outputs - SIDES
        for layer in self.tell:
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            nn.init.constant_(layer.bias[:classes], -math.log((1 - PRIOR) / PRIOR))
            # four strides each way, in the middle of what a level tells
            nn.init.constant_(layer.bias[classes:], math.log(SIDES))

    def forward(self, packed: Tensor) -> Tensor:
        """Return outputs (n, classes + 7, places), level after level."""
        layout = find_layout(self.layouts, packed)
        stages = layout.unpack(packed)[1:]
        pyramid: Tensor | None = None
        told: list[Tensor] = []
        for number in reversed(range(len(stages))):
            brought = self.across[number](stages[number])
            if pyramid is not None:
                brought = brought + enlarge(pyramid, tuple(brought.shape[2:]))
            mixed: Tensor = brought + self.mixing[number](F.relu(brought))
            if number in self.levels:
                told.append(self.tell_level(mixed, self.levels.index(number)))
            pyramid = mixed
        return torch.cat(told, dim=2)

    def tell_level(self, values: Tensor, level: int) -> Tensor:
        """Return what the places of one level tell `(n, classes + 7, places)`."""
        stride = self.strides[level]
        seen = F.relu(self.tower[level](F.relu(values)))
        outputs = self.tell[level](seen)
        logits, raw = outputs.split([outputs.shape[1] - SIDES, SIDES], dim=1)
        sides = raw.clamp(max=MOST_EXPONENT).exp() * stride
        where = locate(tuple(values.shape[2:]), stride).to(sides)
        where = where.expand(len(values), -1, -1, -1)
        return torch.cat([logits, sides, where], dim=1).flatten(2)


def locate(grid: tuple[int, ...], stride: int) -> Tensor:
    """Return x, y and stride of each place of a grid, `(3, rows, columns)`."""
    rows, columns = grid
    y = (torch.arange(rows) + 0.5) * stride
    x = (torch.arange(columns) + 0.5) * stride
    down = y[:, None].expand(rows, columns)
    across = x[None].expand(rows, columns)
    return torch.stack([across, down, torch.full((rows, columns), float(stride))])


def find_levels(layout: MapLayout, strides: Sequence[int]) -> tuple[int, ...]:
    """Return the number of the stage that each level is told at, the last with its places.

    Raises:
        UserError: no stage has them.
    """
    stages = [shape[1:] for shape in layout.shapes[1:]]
    levels: list[int] = []
    for stride in strides:
        wanted = tuple(-(-side // stride) for side in layout.grid)
        fitting = [number for number, grid in enumerate(stages) if grid == wanted]
        if not fitting:
            present = sorted({round(layout.grid[0] / grid[0]) for grid in stages})
            what = f"{stride}, and the maps of this network have strides {present}"
            remedy = "write strides that it has, each twice the one before"
            raise UserError(what, where="task.boxes.strides", remedy=remedy)
        levels.append(fitting[-1])
    return tuple(levels)


def drop_finer(stages: Sequence[str], layout: MapLayout, stride: int) -> tuple[str, ...]:
    """Return those stages whose maps are no finer than a stride: no box is told at others."""
    widest = -(-layout.grid[0] // stride)
    kept: list[str] = []
    for name, shape in zip(stages, layout.shapes[1:], strict=True):
        if shape[1] <= widest:
            kept.append(name)
    return tuple(kept)
