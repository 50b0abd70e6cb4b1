"""Added biases: a trainable vector after every layer (after BitFit, Ben Zaken et al. 2022).

A vector is added even where the layer has no bias of its own, as convolutions before a BatchNorm
have none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedgraft.common.adapters.attention import open_attention
from fedgraft.common.adapters.convolutions import CONVOLUTIONS
from fedgraft.common.adapters.host import Adapter, Affine, attach_to
from fedgraft.common.adapters.method import Attachment, Method
from fedgraft.common.adapters.targets import find_layers, select


class AddedBias(Adapter):
    """y + b for every channel.

        attach_to(layer, AddedBias(channels=16, last=False))

    Args:
        channels: length of the vector.
        last: channels are the last axis of y, not axis 1.
    """

    parallel = False

    def __init__(self, channels: int, last: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.last = last

    def forward(self, y: Tensor) -> Tensor:
        """(n, channels, …) or (n, …, channels) → the same shape."""
        if self.last:
            return y + self.bias
        return y + self.bias.view(-1, *[1] * (y.ndim - 2))

    def fold(self, weight: Tensor, bias: Tensor | None) -> Affine:
        """Return the weight, and the vector added to the bias, or in its place."""
        if bias is None:
            return weight, self.bias
        return weight, bias + self.bias


def attach_bias(net: nn.Module, attachment: Attachment) -> None:
    """Put a zero vector after every target."""
    chosen = select(find_layers(net), attachment.targets, net)
    open_attention(net, chosen)
    for layer in chosen.values():
        channels, last = output_axis(layer)
        attach_to(layer, AddedBias(channels, last))


def output_axis(layer: nn.Module) -> tuple[int, bool]:
    """Return the channels of a layer's output, and whether they are its last axis."""
    if isinstance(layer, CONVOLUTIONS):
        return layer.out_channels, False
    if isinstance(layer, nn.MultiheadAttention):
        return 3 * layer.embed_dim, True
    assert isinstance(layer, nn.Linear)
    return layer.out_features, True


BIAS = Method("bias", attach_bias, describe=lambda options: "added biases and the classifier")
