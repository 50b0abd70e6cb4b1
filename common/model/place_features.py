"""Features of some places of images, as a head for each place reads them: a row for each place.

What a public reference is fitted to. Places of one image say much the same: a few of each do, and
with as many rows of each fewer images than where an image is a row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.model.map_heads import MapChoice, open_maps
from fedgraft.common.model.pixel_head import PixelHead
from fedgraft.common.model.stage_maps import StageMaps, layout_of

# places each way, of the shortest side of an image
EACH_WAY = 8
# public images, of those that there are
IMAGES = 200


class PlaceFeatures:
    """Outputs of some stages of a network at some places of its records.

        features = PlaceFeatures(maps, PixelHead(layout, classes=1))
        features(images).shape  # (n · 64, 240)

    Args:
        maps: the stages.
        head: knows how a place is described; its values mean nothing.
    """

    # of `DepthFeatures`: how places are pooled
    pool = "none"

    def __init__(self, maps: StageMaps, head: PixelHead) -> None:
        self.maps = maps
        self.head = head
        self.stages = maps.stages
        self.stride = max(min(head.grid) // EACH_WAY, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Prepared inputs (n, channels, *grid) → features (n · places, d)."""
        places = self.head.read_pixels(self.maps(x), self.stride)
        return places.movedim(1, -1).flatten(0, -2)


@torch.no_grad()
def open_places(backbone: Backbone, net: nn.Module, choice: MapChoice) -> PlaceFeatures:
    """Return the chosen features of a copy of a backbone's network. Raise `UserError` as
    `open_maps`.
    """
    maps = open_maps(backbone, net, choice)
    return PlaceFeatures(maps, PixelHead(layout_of(maps, choice.example), classes=1))
