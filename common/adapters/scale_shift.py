"""Scale and shift: y·γ + β for every channel after every layer (SSF, Lian et al. 2022, equation
3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedgraft.common.adapters.attention import open_attention
from fedgraft.common.adapters.bias import output_axis
from fedgraft.common.adapters.host import Adapter, Affine, attach_to
from fedgraft.common.adapters.method import Attachment, Method
from fedgraft.common.adapters.targets import find_layers, select


class ScaleShift(Adapter):
    """y·γ + β, with γ = 1 and β = 0 at the beginning.

        attach_to(layer, ScaleShift(channels=16, last=False))

    Args:
        channels: length of γ and of β.
        last: channels are the last axis of y, not axis 1.
    """

    parallel = False

    def __init__(self, channels: int, last: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.last = last

    def forward(self, y: Tensor) -> Tensor:
        """(n, channels, …) or (n, …, channels) → the same shape."""
        if self.last:
            return y * self.scale + self.shift
        by_channel = (-1, *[1] * (y.ndim - 2))
        return y * self.scale.view(by_channel) + self.shift.view(by_channel)

    def fold(self, weight: Tensor, bias: Tensor | None) -> Affine:
        """Return γ W and γ b + β: γ·(W x + b) + β = (γ W) x + (γ b + β)."""
        by_channel = self.scale.view(-1, *[1] * (weight.ndim - 1))
        scaled = weight * by_channel
        if bias is None:
            return scaled, self.shift
        return scaled, bias * self.scale + self.shift


def attach_scale_shift(net: nn.Module, attachment: Attachment) -> None:
    """Put γ = 1, β = 0 after every target."""
    chosen = select(find_layers(net), attachment.targets, net)
    open_attention(net, chosen)
    for layer in chosen.values():
        channels, last = output_axis(layer)
        attach_to(layer, ScaleShift(channels, last))


SCALE_SHIFT = Method(
    "scale-shift",
    attach_scale_shift,
    describe=lambda options: "scale and shift of each channel and the classifier",
)
