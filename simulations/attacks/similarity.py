"""How alike two images are: PSNR in decibels, and SSIM."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SPREAD = 11, 1.5  # pixels; standard deviation of the Gaussian window
_C1, _C2 = 0.01**2, 0.03**2  # for values on 0–1


def psnr(image: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio of images (…) on 0–1: −10 log10 of the mean squared error; ∞ where
    equal.
    """
    error = float((image.double() - other.double()).square().mean())
    return -10 * math.log10(error) if error else math.inf


def ssim(image: Tensor, other: Tensor) -> float:
    """Mean structural similarity of images `(C, H, W)` on 0–1, −1 to 1; 1 where equal.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to
    structural similarity" (IEEE TIP 2004), eq. 13, with their Gaussian window of 11 pixels (smaller
    images: as large as fits), where it fits wholly.
    """
    size = min(WINDOW, *image.shape[1:])
    offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    line = torch.exp(-(offsets**2) / (2 * SPREAD**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2
    x, y = image.double()[:, None], other.double()[:, None]
    mx, my = F.conv2d(x, window), F.conv2d(y, window)
    vx, vy = F.conv2d(x * x, window) - mx**2, F.conv2d(y * y, window) - my**2
    cov = F.conv2d(x * y, window) - mx * my
    found = (2 * mx * my + _C1) * (2 * cov + _C2) / ((mx**2 + my**2 + _C1) * (vx + vy + _C2))
    return float(found.mean())
