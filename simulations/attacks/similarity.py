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
    window = _gaussian_window(min(WINDOW, *image.shape[1:]))
    x = image.double()[:, None]
    y = other.double()[:, None]
    mean_x = F.conv2d(x, window)
    mean_y = F.conv2d(y, window)
    variance_x = F.conv2d(x * x, window) - mean_x**2
    variance_y = F.conv2d(y * y, window) - mean_y**2
    covariance = F.conv2d(x * y, window) - mean_x * mean_y

    alike = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    most = (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
    return float((alike / most).mean())


def _gaussian_window(size: int) -> Tensor:
    """Return weights `(1, 1, size, size)` that sum to one."""
    offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    line = torch.exp(-(offsets**2) / (2 * SPREAD**2))
    square = torch.outer(line, line)
    return square[None, None] / line.sum() ** 2
