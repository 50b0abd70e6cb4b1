"""Images that anybody has: patches of scikit-learn's two photographs, grey."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.inputs.material import Preparation
from fedgraft.common.plan.backbone_section import BackboneSection
from fedgraft.common.plan.task_section import TaskSection

PATCHES = 4000
# sides of the squares that are cut out of a photograph, pixels
SMALLEST = 28
LARGEST = 200


def cut_patches(preparation: Preparation, backbone: BackboneSection, task: TaskSection) -> Tensor:
    """Return random squares of both photographs as raw images, as large as the backbone's inputs.

    The same ones each time, uint8 `(PATCHES, 1, side, side)`; where an image's channels are neither
    grey nor colour, each channel is a square of its own, `(PATCHES, channels, side, side)`.
    """
    from sklearn.datasets import load_sample_images

    side = int(getattr(preparation, "crop", None) or SMALLEST)
    photographs = []
    for photograph in load_sample_images().images:
        grey = photograph.mean(2).astype(np.float32)
        photographs.append(torch.from_numpy(grey)[None, None])
    rng = np.random.default_rng(0)
    patches = torch.empty((PATCHES, 1, side, side), dtype=torch.uint8)
    for number in range(PATCHES):
        photograph = photographs[rng.integers(len(photographs))]
        size = int(rng.integers(SMALLEST, LARGEST))
        top = int(rng.integers(0, photograph.shape[2] - size))
        left = int(rng.integers(0, photograph.shape[3] - size))
        square = photograph[:, :, top : top + size, left : left + size]
        # as a camera's pixel: the mean of what falls on it
        resized = F.interpolate(square, size=(side, side), mode="area")
        patches[number] = resized[0].round().clamp(0, 255).to(torch.uint8)
    return _with_channels(patches, getattr(preparation, "channels", None))


def _with_channels(patches: Tensor, channels: int | None) -> Tensor:
    """Return grey squares `(n, 1, side, side)` as images whose channels are squares."""
    if channels in (None, 1, 3):
        return patches
    squares = [patches.roll(channel, 0) for channel in range(channels)]
    return torch.cat(squares, 1)
