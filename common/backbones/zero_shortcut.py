"""A shortcut without weights: every k-th voxel, channels of zeros (He et al. 2016, option A)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ZeroShortcut(nn.Module):
    """(n, channels, …) → (n, planes, …), as MONAI computes it.

        ZeroShortcut(planes=128, stride=2)(torch.zeros(1, 64, 8, 8, 8))  # (1, 128, 4, 4, 4)

    MONAI's own takes the values without their gradient, and adapters in front of it would be taught
    by a part of the network only.
    """

    def __init__(self, planes: int, stride: int) -> None:
        super().__init__()
        self.planes = planes
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the voxels that stay, and zeros behind their channels."""
        for axis in range(2, x.ndim):
            every = slice(None, None, self.stride)
            x = x[(slice(None),) * axis + (every,)]
        around = [0, 0] * (x.ndim - 2)
        return F.pad(x, [*around, 0, self.planes - x.shape[1]])
