"""How alike two images are: PSNR in decibels, and SSIM."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# side of the Gaussian window, pixels
WINDOW = 11
# its standard deviation, pixels
SPREAD = 1.5
# against division by zero, for values on 0–1
_C1 = 0.01**2
_C2 = 0.03**2


def psnr(image: Tensor, other: Tensor) -> float:
    """Return the peak signal-to-noise ratio of images (…) on 0–1: −10 log10 of the mean squared
    error; ∞ where equal.
    """
    difference = image.double() - other.double()
    error = float(difference.square().mean())
    if error == 0:
        return math.inf
    return -10 * math.log10(error)


def ssim(image: Tensor, other: Tensor) -> float:
    """Return the mean structural similarity of images `(C, H, W)` on 0–1, −1 to 1; 1 where equal.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to
    structural similarity" (IEEE TIP 2004), eq. 13, with their Gaussian window of 11 pixels (smaller
    images: as large as fits), where it fits wholly.
    """
    size = min(WINDOW, *image.shape[1:])
    window = _gaussian_window(size)
    x = image.double()[:, None]
    y = other.double()[:, None]
    mean_x = F.conv2d(x, window)
    mean_y = F.conv2d(y, window)
    square_x = mean_x**2
    square_y = mean_y**2
    product = mean_x * mean_y
    variance_x = F.conv2d(x * x, window) - square_x
    variance_y = F.conv2d(y * y, window) - square_y
    covariance = F.conv2d(x * y, window) - product

    alike = (2 * product + _C1) * (2 * covariance + _C2)
    most = (square_x + square_y + _C1) * (variance_x + variance_y + _C2)
    similarity = alike / most
    return float(similarity.mean())


def _gaussian_window(size: int) -> Tensor:
    """Return weights `(1, 1, size, size)` that sum to one."""
    middle = (size - 1) / 2
    offsets = torch.arange(size, dtype=torch.float64) - middle
    line = torch.exp(-(offsets**2) / (2 * SPREAD**2))
    square = torch.outer(line, line)
    total = line.sum() ** 2
    return square[None, None] / total
