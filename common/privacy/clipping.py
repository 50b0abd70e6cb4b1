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
    """Return Δ = state − received, float64, tensors by name."""
    update: dict[str, Tensor] = {}
    for name in sorted(received):
        update[name] = state[name].double() - received[name].double()
    return update


def norm_of(update: State) -> float:
    """Return the L2 norm over all tensors of an update together."""
    total = 0.0
    for tensor in update.values():
        total += float(tensor.double().square().sum())
    return math.sqrt(total)


def clip_update(update: State, most: float) -> dict[str, Tensor]:
    """Return Δ · min(1, most / ‖Δ‖), float64. Zero stays zero; what is not finite becomes zero,
    too.
    """
    norm = norm_of(update)
    clipped: dict[str, Tensor] = {}
    if not math.isfinite(norm):
        for name, tensor in update.items():
            clipped[name] = torch.zeros_like(tensor, dtype=torch.float64)
        return clipped
    factor = 1.0
    if norm > most:
        factor = most / norm
    for name, tensor in update.items():
        clipped[name] = tensor.double() * factor
    return clipped


def apply_update(received: State, update: State) -> dict[str, Tensor]:
    """Return received + Δ as float32: an adapter again."""
    state: dict[str, Tensor] = {}
    for name in sorted(received):
        moved = received[name].double() + update[name]
        state[name] = moved.to(torch.float32)
    return state


def noise_like(state: State, deviation: float, randomness: Randomness) -> dict[str, Tensor]:
    """Return independent Gaussian noise for every value of a state, float64."""
    names = sorted(state)
    sizes = [state[name].numel() for name in names]
    values = randomness.normal(sum(sizes)) * deviation
    noise: dict[str, Tensor] = {}
    for name, part in zip(names, torch.from_numpy(values).split(sizes), strict=True):
        noise[name] = part.view_as(state[name])
    return noise
