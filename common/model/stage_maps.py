"""Features of places: what stages of a frozen network give, each at its own resolution.

A mask needs to know where. The stages are those of `depth_features.py`, of which the last of each
group is taken; before them goes the prepared image itself. The maps of one example are packed into
one row, as activations are kept and moved; a head unpacks them by their layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.errors import UserError
from fedgraft.common.model.depth_features import LAST, STEM, list_stages, select_stages, watching
from fedgraft.common.model.slices import fold_slices

# a map with fewer places each way than this part of the image's says little of where
COARSEST = 16


@dataclass(frozen=True)
class MapLayout:
    """The shapes of an example's maps, in order; the first is the prepared image's.

        layout = MapLayout(((3, 64, 64), (32, 32, 32)))
        image, stem = layout.unpack(torch.zeros(8, layout.values))

    Attributes:
        shapes: (channels, *places) of each.
    """

    shapes: tuple[tuple[int, ...], ...]

    @property
    def values(self) -> int:
        """Return the length of a row."""
        return sum(map(math.prod, self.shapes))

    @property
    def grid(self) -> tuple[int, ...]:
        """Return the places of the image."""
        return self.shapes[0][1:]

    @property
    def channels(self) -> tuple[int, ...]:
        """Return the channels of each map."""
        return tuple(shape[0] for shape in self.shapes)

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """Rows (n, values) → maps (n, channels, *places)."""
        parts = packed.split([math.prod(shape) for shape in self.shapes], dim=1)
        maps: list[Tensor] = []
        for part, shape in zip(parts, self.shapes, strict=True):
            maps.append(part.unflatten(1, shape))
        return maps


def pack(maps: Sequence[Tensor]) -> Tensor:
    """Maps (n, channels, *places) → rows (n, values)."""
    return torch.cat([each.flatten(1) for each in maps], dim=1)


class StageMaps:
    """Outputs of some stages of a network as maps, packed to one row for each example.

        maps = StageMaps(net, head_name="classifier", stages=("stem", "blocks.1.1"))
        image, stem, second = layout_of(maps, images).unpack(maps(images))

    Args:
        net: the network, with anything that gives `(n, …)` in the classifier's place.
        head_name: dotted name of the classifier.
        stages: names of blocks and "stem", in order.
        slices: of a volume, for a network over images; None: a record is what the network takes.
    """

    # of `DepthFeatures`: how places are pooled
    pool = "none"

    def __init__(
        self, net: nn.Module, *, head_name: str, stages: Sequence[str], slices: int | None = None
    ) -> None:
        self.net = net
        self.head_name = head_name
        self.stages = tuple(stages)
        self.slices = slices

    def __call__(self, x: Tensor) -> Tensor:
        """Prepared images (n, channels, *places) → rows (n, values)."""
        return pack(self.read(x))

    def read(self, x: Tensor) -> list[Tensor]:
        """Return the maps themselves, the image first. Raise `UserError` where a stage has none."""
        seen = x if self.slices is None else fold_slices(x)
        maps = [x]
        with watching(self.net, self.stages, self.head_name) as outputs:
            self.net(seen)
        for name in self.stages:
            each = find_map(*outputs[name], name, seen.ndim)
            maps.append(each if self.slices is None else _stack_slices(each, self.slices))
        return maps


def find_map(output: Tensor, channels_last: bool, name: str, axes: int) -> Tensor:
    """Return a stage's output as (n, channels, *places). Raise `UserError` where it has no places.

    Args:
        axes: of what the network is given, `n` and the channels among them.
    """
    if output.ndim != axes:
        what = f"{name} gives {tuple(output.shape[1:])} for an image, and a mask needs maps"
        remedy = "take a convolutional network, such as resnet18 or timm/tf_efficientnet_lite0"
        raise UserError(what, where="backbone.name", remedy=remedy)
    return output.movedim(-1, 1) if channels_last else output


def _stack_slices(maps: Tensor, slices: int) -> Tensor:
    """(n · slices, channels, H, W) → (n, channels, slices, H, W)."""
    return maps.unflatten(0, (-1, slices)).transpose(1, 2)


@torch.no_grad()
def layout_of(maps: StageMaps, example: Tensor) -> MapLayout:
    """Return the layout of the maps of an image `(1, channels, *places)`."""
    return MapLayout(tuple(tuple(each.shape[1:]) for each in maps.read(example)))


# ── which stages ──────────────────────────────────────────────────────────────────────────────────
def choose_map_stages(backbone: Backbone, selection: Any, example: Tensor) -> tuple[str, ...]:
    """Return the stages whose maps a plan selects, in the network's order.

    "all" takes the stem, of blocks that follow one another with maps of one shape the last, and
    leaves out maps that are coarser than `COARSEST`; "last" is the last of these.

    Args:
        example: one record as the network takes it, of a volume in slices one slice.

    Raises:
        UserError: a name that is no stage of this network, or a network without maps.
    """
    net = backbone.net
    stages = [name for name in list_stages(net) if name != LAST]
    # (n, channels, H, W) or more
    if not stages or example.ndim < 4:
        what = f"{backbone.name} has no blocks with places, and a mask needs maps of them"
        remedy = "take a convolutional network, such as resnet18 or timm/tf_efficientnet_lite0"
        raise UserError(what, where="backbone.name", remedy=remedy)
    if selection not in ("all", "last"):
        return select_stages(stages, selection)
    reading = StageMaps(net, head_name=backbone.head_name, stages=stages)
    layout = layout_of(reading, example)
    sides = dict(zip(stages, [min(shape[-2:]) for shape in layout.shapes[1:]], strict=True))
    least = min(layout.grid[-2:]) / COARSEST
    kept = [name for name in last_of_shapes(stages, layout) if sides[name] >= least]
    return tuple(kept if selection == "all" else kept[-1:])


def last_of_shapes(stages: Sequence[str], layout: MapLayout) -> list[str]:
    """Return the stem, and of blocks that follow one another with maps of one shape the last."""
    shapes = [*layout.shapes[1:], None]
    kept: list[str] = []
    for number, name in enumerate(stages):
        if name == STEM or shapes[number] != shapes[number + 1]:
            kept.append(name)
    return kept
