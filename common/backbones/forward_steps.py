"""Steps of a network that are no child of it: what its forward pass does between its layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def relu(net: Any, x: Tensor) -> Tensor:
    """(n, …) → (n, …), never negative."""
    return F.relu(x)


def mean_of_pixels(net: Any, x: Tensor) -> Tensor:
    """(n, channels, H, W) → (n, channels)."""
    return x.mean([2, 3])


def pool(net: Any, x: Tensor) -> Tensor:
    """(n, channels, H, W) → (n, channels, 1, 1)."""
    return F.adaptive_avg_pool2d(x, (1, 1))


def flatten(net: Any, x: Tensor) -> Tensor:
    """(n, …) → (n, values)."""
    return torch.flatten(x, 1)


def mean_of_places(values: Tensor, here: Tensor) -> Tensor:
    """(n, places, channels), and 1 for the places that count, 0 for others (n, places) → (n,
    channels).
    """
    weights = here.to(values.dtype)[..., None]
    return (values * weights).sum(1) / weights.sum(1)
