"""A light decoder on the maps of a frozen encoder: what is trained where masks are learnt by steps.

From the coarsest map to the finest: each is brought to one width, what came from below is enlarged
and added, and a 3×3 convolution mixes neighbours (feature pyramids: Lin et al. 2017, figure 3);
then on the image's own grid with the image beside it, as the last step of a U-Net (Ronneberger et
al. 2015).

Where a plan solves for a linear head first, the decoder learns what that one lacks: its logits are
added to those of the linear head, which steps leave as it was solved, and begin with 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.adapters.convolutions import Conv
from fedgraft.common.adapters.initial_values import draw
from fedgraft.common.model.pixel_head import PixelHead, enlarge, find_layout, index_layouts
from fedgraft.common.model.stage_maps import MapLayout

CONVOLUTIONS: dict[int, type[Conv]] = {2: nn.Conv2d, 3: nn.Conv3d}


class MapDecoder(nn.Module):
    """Packed maps (n, values) → logits (n, classes, *grid).

        decoder = MapDecoder(layout, classes=2, width=32, seed=7)
        decoder(maps(images)).shape  # (n, 2, 256, 256)

    Args:
        layout: of the maps of an example.
        classes: outputs for each place.
        width: channels of the pyramid; half as many on the image's grid.
        seed: of the initial values: the same on every side, bit for bit.
        solved: whether a linear head that sums solve for is beside it.
        more: layouts of examples of other sizes, such as crops.
    """

    def __init__(
        self,
        layout: MapLayout,
        classes: int,
        *,
        width: int,
        seed: int,
        solved: bool = False,
        more: tuple[MapLayout, ...] = (),
    ) -> None:
        super().__init__()
        self.layouts = index_layouts((layout, *more))
        conv = CONVOLUTIONS[len(layout.grid)]
        image, *stages = layout.channels
        fine = max(width // 2, 1)
        # drawn below: torch's own initialisation would move the global random state
        with torch.device("meta"):
            self.across = nn.ModuleList(conv(channels, width, 1) for channels in stages)
            self.mixing = nn.ModuleList(conv(width, width, 3, padding=1) for _ in stages)
            self.narrow = conv(width, fine, 1)
            self.image = conv(image, fine, 3, padding=1)
            self.refine = conv(fine, fine, 3, padding=1)
            self.classify = conv(fine, classes, 1)
        draw_values(self, seed)
        self.solved = PixelHead(layout, classes, more) if solved else None
        if solved:
            for parameter in self.classify.parameters():
                nn.init.zeros_(parameter)

    def forward(self, packed: Tensor) -> Tensor:
        """Return logits (n, classes, *grid)."""
        layout = find_layout(self.layouts, packed)
        image, *stages = layout.unpack(packed)
        pyramid: Tensor | None = None
        for values, across, mixing in zip(
            reversed(stages), reversed(self.across), reversed(self.mixing), strict=True
        ):
            brought = across(values)
            if pyramid is not None:
                brought = brought + enlarge(pyramid, tuple(values.shape[2:]))
            pyramid = brought + mixing(F.relu(brought))
        assert pyramid is not None
        fine = enlarge(self.narrow(pyramid), layout.grid)
        fine = F.relu(fine + self.image(image))
        fine = F.relu(fine + self.refine(fine))
        logits = self.classify(fine)
        if self.solved is None:
            return logits
        # no gradient: exact sums of all records are not to be forgotten by steps on a few of them
        return logits + self.solved(packed).detach()


def draw_values(module: nn.Module, seed: int) -> None:
    """Give every convolution of a module its initial values, out of the seed and its name."""
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Conv3d):
            continue
        fan_in = layer.weight[0].numel()
        for part, shaped in list(layer.named_parameters()):
            values = torch.zeros(shaped.shape)
            draw(values, fan_in, seed, f"decoder.{name}.{part}")
            setattr(layer, part, nn.Parameter(values))
