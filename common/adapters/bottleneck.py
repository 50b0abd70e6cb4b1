"""Bottleneck adapters: a small residual layer after every residual block (Houlsby et al. 2019,
section 2).

    y + up(relu(down(y))),   down: channels → width, drawn;   up: width → channels, zero at the
    beginning

Convolutions of one position after a convolutional block, Linear after one of a transformer. The
ReLU between them keeps it from merging into a frozen layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.adapters.convolutions import CONVOLUTIONS, Conv, kind_of_conv
from fedgraft.common.adapters.host import attach_to
from fedgraft.common.adapters.initial_values import ConvShape, new_conv, new_linear
from fedgraft.common.adapters.method import Attachment, Method
from fedgraft.common.adapters.targets import count_channels, find_blocks, has_channels_last, select
from fedgraft.common.errors import UserError


@dataclass(frozen=True)
class BottleneckOptions:
    """Options of `adapter.method: bottleneck`.

    Attributes:
        width: of the narrow layer.
    """

    width: int = 8

    def __post_init__(self) -> None:
        if self.width < 1:
            what = f"{self.width} is too small"
            raise UserError(what, where="adapter.width", remedy="give 1 or more")


class Bottleneck(nn.Module):
    """y + up(relu(down(y))); both maps have a bias.

        attach_to(block, Bottleneck(down, up))

    Args:
        down: channels → width.
        up: width → channels.
    """

    parallel = False

    def __init__(self, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.down = down
        self.up = up

    def forward(self, y: Tensor) -> Tensor:
        """(n, channels, …) or (n, …, channels) → the same shape."""
        return y + self.up(F.relu(self.down(y)))


def attach_bottleneck(net: nn.Module, attachment: Attachment) -> None:
    """Put a bottleneck after every targeted block.

    Raises:
        UserError: a network without residual blocks.
    """
    candidates = find_blocks(net)
    if not candidates:
        raise UserError(
            "a bottleneck goes after residual blocks, and none are known in this backbone",
            where="adapter.method",
            remedy="write lora, scale-shift, bias, head or full",
        )
    for name, block in select(candidates, attachment.targets, net).items():
        attach_to(block, _new_bottleneck(name, block, attachment))


def _new_bottleneck(name: str, block: nn.Module, attachment: Attachment) -> Bottleneck:
    channels = count_channels(block)
    width = attachment.options.width
    seed = attachment.seed
    down = f"{name}.down"
    up = f"{name}.up"
    if has_channels_last(block):
        return Bottleneck(
            new_linear(channels, width, bias=True, seed=seed, name=down),
            new_linear(width, channels, bias=True, seed=None, name=up),
        )
    kind = _last_conv(block)
    return Bottleneck(
        new_conv(ConvShape(channels, width, bias=True), seed=seed, name=down, kind=kind),
        new_conv(ConvShape(width, channels, bias=True), seed=None, name=up, kind=kind),
    )


def _last_conv(block: nn.Module) -> type[Conv]:
    """Return the class of a block's last convolution: over how many axes it runs."""
    convs = [module for module in block.modules() if isinstance(module, CONVOLUTIONS)]
    return kind_of_conv(convs[-1])


BOTTLENECK = Method(
    "bottleneck",
    attach_bottleneck,
    describe=lambda options: f"bottleneck adapter of width {options.width} and the classifier",
    options=BottleneckOptions,
)
