"""A network for images in colour → one for images of any number of channels, by one rule.

Weights of m channels become weights of n: taken in turn, 1, 2, …, m, 1, 2, …, and times m / n, so
that what a filter adds up keeps its size; for one channel they are summed, so that a grey image
gives what it gave as m equal channels. It is the rule of timm (`adapt_input_conv`). Where a channel
of the data is no colour, it begins as one of the colours, and adapters go on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.errors import UserError

COLOURS = 3
# channels of weights that become those of others: grey, and colour
KNOWN = (1, COLOURS)
# axes of the weights of a convolution over images; over volumes there is one more
_AXES = 4


def bring_weight(weight: Tensor, channels: int) -> Tensor:
    """Return the weights `(outputs, m, …)` of a first convolution for so many channels."""
    given = weight.shape[1]
    if given == channels:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    turns = torch.arange(channels, device=weight.device) % given
    return weight[:, turns] * (given / channels)


def bring_network(name: str, net: nn.Module, channels: int | None) -> None:
    """Change every convolution that an image in colour enters first, so that images of so many
    channels do.

    Args:
        name: of the network, for messages.
        channels: of an image; None, or the network's own: nothing is changed.

    Raises:
        UserError: a network that takes colours apart, or of which nobody knows what images enter.
    """
    first = _first_convolutions(net)
    if channels in (None, COLOURS) or not first or first[0].in_channels == channels:
        return
    if first[0].in_channels != COLOURS or getattr(net, "transform_input", False):
        raise UserError(
            f"{channels} channels, and {name} takes images in colour alone",
            where="backbone.channels",
            remedy="leave it out, or take another network, such as resnet18",
        )
    for layer in first:
        layer.in_channels = channels
        layer.weight = nn.Parameter(bring_weight(layer.weight.detach(), channels))
    _tell_owners(net, first, channels)


def bring_state(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], channels: int
) -> Mapping[str, Tensor]:
    """Return given tensors with the weights for colour or grey images made for so many channels,
    where a network expects that.

    Args:
        expected: tensors of the network, by name.
        channels: of its images or volumes.
    """
    brought: dict[str, Tensor] = {}
    for name, tensor in given.items():
        shape = list(expected.get(name, tensor).shape)
        is_first = len(shape) >= _AXES and shape[1] == channels
        if is_first and _differs_in_channels(tensor, shape):
            tensor = bring_weight(tensor, channels)
        brought[name] = tensor
    return brought


def _differs_in_channels(tensor: Tensor, shape: list[int]) -> bool:
    own = list(tensor.shape)
    if len(own) != len(shape) or own == shape or own[1] not in KNOWN:
        return False
    return [own[0], *own[2:]] == [shape[0], *shape[2:]]


def _first_convolutions(net: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions over images that come before all others, and take as many channels
    as one another: several where a stem has branches.
    """
    first: list[nn.Conv2d] = []
    for layer in net.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        if first and layer.in_channels != first[0].in_channels:
            break
        first.append(layer)
    return first


def _tell_owners(net: nn.Module, first: list[nn.Conv2d], channels: int) -> None:
    """Write the channels where a network looks them up before it calls its first convolution."""
    changed = set(first)
    for owner in net.modules():
        holder: Any = owner
        if changed & set(owner.children()) and getattr(holder, "num_channels", None) == COLOURS:
            holder.num_channels = channels
