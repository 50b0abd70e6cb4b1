"""Bottleneck adapters: a small residual layer after every residual block (Houlsby et al. 2019,
section 2).

    y + up(relu(down(y))),   down: channels → width, drawn;   up: width → channels, zero at the
    beginning

1×1 convolutions after a convolutional block, Linear after one of a transformer. The ReLU between
them keeps it from merging into a frozen layer.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.adapters.attachment import place
from fedgraft.common.adapters.options import Options, new_conv, new_linear
from fedgraft.common.adapters.targets import block_channels, blocks, channels_last, select
from fedgraft.common.errors import UserError


class Bottleneck(nn.Module):
    """y + up(relu(down(y))); both maps have a bias."""

    parallel = False

    def __init__(self, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.down, self.up = down, up

    def forward(self, y: Tensor) -> Tensor:
        """(n, channels, H, W) or (n, …, channels) → the same shape."""
        return y + self.up(F.relu(self.down(y)))


def place_bottleneck(net: nn.Module, options: Options) -> None:
    """Put a bottleneck after every targeted block. Raises `UserError` for a network without
    residual blocks.
    """
    found = blocks(net)
    if not found:
        raise UserError(
            "a bottleneck goes after residual blocks, and none are known in this backbone",
            where="adapter.method",
            remedy="write lora, scale-shift, bias, head or full",
        )
    for name, block in select(found, options.targets, net).items():
        place(block, _new_bottleneck(name, block, options))


def _new_bottleneck(name: str, block: nn.Module, options: Options) -> Bottleneck:
    channels, width, seed = block_channels(block), options.width, options.seed
    down, up = f"{name}.down", f"{name}.up"
    if channels_last(block):
        return Bottleneck(
            new_linear(channels, width, bias=True, seed=seed, name=down),
            new_linear(width, channels, bias=True, seed=None, name=up),
        )
    return Bottleneck(
        new_conv(None, channels, width, groups=1, bias=True, seed=seed, name=down),
        new_conv(None, width, channels, groups=1, bias=True, seed=None, name=up),
    )
