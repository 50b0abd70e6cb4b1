"""A temperature for a model's outputs: one number by which they are divided, so that stated
probabilities are as often right as they say (Guo et al. 2017, "On calibration of modern neural
networks", section 4.2).

It is chosen from a fixed grid by the sum of losses at each place of it: such sums merge, so that
hospitals find the temperature of their pooled records without pooling them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

# from 1/8 to 8, in equal steps of the logarithm; 1 is in the middle
TEMPERATURES = tuple(float(2.0 ** (3 * step / 16)) for step in range(-16, 17))
NEUTRAL = TEMPERATURES.index(1.0)
Losses = Callable[[Tensor, Tensor], Tensor]


def sum_losses(losses: Losses, outputs: Tensor, targets: Tensor) -> np.ndarray:
    """Return the sum of losses at each temperature, float64 `(33,)`, nats.

    Args:
        losses: (outputs, targets) → loss of each example `(n,)`.
        outputs: `(n, K)`.
        targets: `(n,)`.
    """
    exact = outputs.double()
    sums = [float(losses(exact / value, targets).sum()) for value in TEMPERATURES]
    return np.array(sums)


def choose_temperature(sums: np.ndarray) -> float:
    """Return the temperature with the lowest sum of losses `(33,)`; of equals the one nearest 1."""
    lowest = np.flatnonzero(sums == sums.min())
    nearest = min(lowest.tolist(), key=lambda place: abs(place - NEUTRAL))
    return TEMPERATURES[nearest]


def divide_head(state: Mapping[str, Tensor], head: str, temperature: float) -> dict[str, Tensor]:
    """Return an adapter whose outputs are divided by a temperature: its head is.

    Args:
        state: tensors by name, among them `HEAD.weight` and `HEAD.bias`.
        head: dotted name of the head.
    """
    divided = dict(state)
    for part in ("weight", "bias"):
        name = f"{head}.{part}"
        divided[name] = torch.div(state[name], temperature)
    return divided
