"""Convolutions over one, two or three axes: series, images and volumes."""

from __future__ import annotations

from torch import nn

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def kind_of_conv(layer: Conv) -> type[Conv]:
    """Return torch's own class of a convolution, whatever its subclass is."""
    for kind in CONVOLUTIONS:
        if isinstance(layer, kind):
            return kind
    raise TypeError(f"{type(layer).__name__} is no convolution")
