"""The way down of a U-Net as a classifier: its stages, the mean over the bottom, a Linear."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fedgraft.common.backbones.family import State

# in the names of a UNet's file: how deep a part lies, and which part it is
_NESTED = re.compile(r"model\.((?:1\.submodule\.)*)(.*)")
_INNER = "1.submodule."


class UNetEncoder(nn.Module):
    """The parts of a U-Net on its way down, one after the other.

        UNetEncoder(basic_unet_parts(BasicUNet()), outputs=2)

    Args:
        parts: by name, from the top to the bottom.
        outputs: of the classifier.
    """

    def __init__(self, parts: Mapping[str, nn.Module], outputs: int) -> None:
        super().__init__()
        self.down = nn.Sequential(OrderedDict(parts))
        widths: list[int] = []
        for module in self.down.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                widths.append(module.out_channels)
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, …) → (n, outputs)."""
        return self.head(mean_of_positions(self, self.down(x)))


def mean_of_positions(net: Any, x: Tensor) -> Tensor:
    """(n, width, …) → (n, width)."""
    return x.flatten(2).mean(2)


def basic_unet_parts(whole: Any) -> dict[str, nn.Module]:
    """Return the parts of MONAI's BasicUNet on its way down, under their own names."""
    names = ("conv_0", "down_1", "down_2", "down_3", "down_4")
    return {name: whole.get_submodule(name) for name in names}


def unet_parts(whole: Any) -> dict[str, nn.Module]:
    """Return the parts of MONAI's UNet on its way down: stage_0 at the top."""
    parts: dict[str, nn.Module] = {}
    here: Any = whole.model
    while isinstance(here, nn.Sequential) and len(here) == 3:
        parts[f"stage_{len(parts)}"] = here[0]
        here = here[1].submodule
    parts[f"stage_{len(parts)}"] = here
    return parts


# ── files of a whole U-Net ────────────────────────────────────────────────────────────────────────
def keep_encoder(net: UNetEncoder, state: State) -> dict[str, Tensor]:
    """Return tensors under the names of the way down; of a whole U-Net's file the decoder is left
    out.
    """
    own = net.state_dict()
    renamed: dict[str, Tensor] = {}
    depths = [_depth_of(name) for name in state]
    bottom = max(depths, default=0)
    for name, tensor in state.items():
        mine = name if name in own else f"down.{_rename(name, bottom)}"
        if mine in own:
            renamed[mine] = tensor
    return renamed


def _depth_of(name: str) -> int:
    """Return how many U-Nets within one another a tensor of a UNet's file lies in."""
    match = _NESTED.fullmatch(name)
    return 0 if match is None else match[1].count(_INNER)


def _rename(name: str, bottom: int) -> str:
    """Return the name of a tensor on the way down: `model.1.submodule.0.…` is of stage_1."""
    match = _NESTED.fullmatch(name)
    if match is None:
        return name
    depth = match[1].count(_INNER)
    rest = match[2]
    if depth < bottom:
        # 0 is the way down, 1 what is below, 2 the way up
        rest = rest.removeprefix("0.") if rest.startswith("0.") else ""
    return f"stage_{depth}.{rest}"
