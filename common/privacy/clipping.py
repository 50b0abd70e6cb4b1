"""An adapter's update: how far it is from the adapter that was received, and how it is brought
within a norm.

One norm over all tensors together, in float64. Node and server must mean the same by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedgraft.common.privacy.randomness import Randomness

State = Mapping[str, Tensor]


def update_of(state: State, received: State) -> dict[str, Tensor]:
    """Δ = state − received, float64, tensors by name."""
    return {name: state[name].double() - received[name].double() for name in sorted(received)}


def norm_of(update: State) -> float:
    """L2 norm over all tensors of an update together."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in update.values()))


def clipped(update: State, most: float) -> dict[str, Tensor]:
    """Δ · min(1, most / ‖Δ‖), in float64. Zero stays zero; what is not finite becomes zero, too."""
    norm = norm_of(update)
    if not math.isfinite(norm):
        return {
            name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in update.items()
        }
    factor = 1.0 if norm <= most else most / norm
    return {name: tensor.double() * factor for name, tensor in update.items()}


def applied(received: State, update: State) -> dict[str, Tensor]:
    """received + Δ as float32: an adapter again."""
    return {
        name: (received[name].double() + update[name]).to(torch.float32)
        for name in sorted(received)
    }


def noise_like(state: State, deviation: float, randomness: Randomness) -> dict[str, Tensor]:
    """Independent Gaussian noise for every value of a state, float64."""
    sizes = {name: state[name].numel() for name in sorted(state)}
    drawn = torch.from_numpy(randomness.normal(sum(sizes.values())) * deviation)
    parts = zip(sizes, drawn.split(list(sizes.values())), strict=True)
    return {name: part.view_as(state[name]) for name, part in parts}
