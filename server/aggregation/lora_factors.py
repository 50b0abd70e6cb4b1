"""LoRA's factors after averaging: left as they are, or the best for the mean of products."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fedgraft.common.privacy.clipping import State
from fedgraft.server.aggregation.rule import Updates

Step = Callable[[dict[str, Tensor], Updates], dict[str, Tensor]]


def keep_factors(combined: dict[str, Tensor], updates: Updates) -> dict[str, Tensor]:
    """Return the combined adapter as it is."""
    return combined


def replace_factors(combined: dict[str, Tensor], updates: Updates) -> dict[str, Tensor]:
    """Return the combined adapter with the factors of `svd_mean` in it."""
    return combined | svd_mean(updates.states, updates.weights)


# by the plan's aggregate.lora_aggregation; freeze-a is the nodes' business: only B travels
LORA_STEPS: Mapping[str, Step] = {
    "average": keep_factors,
    "freeze-a": keep_factors,
    "svd": replace_factors,
}


def lora_pairs(state: State) -> list[tuple[str, str]]:
    """Return the names of A and B of every LoRA update in a state."""
    pairs = []
    for name in sorted(state):
        partner = name.replace(".lora_A.", ".lora_B.")
        if partner != name and partner in state:
            pairs.append((name, partner))
    return pairs


def svd_mean(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return factors A and B of every LoRA update, the best of their rank for the mean of products.

    The mean of A and the mean of B, multiplied, are not the mean of B·A. In the Frobenius norm no
    pair of this rank is closer to that than this one (Eckart and Young 1936); where its rank is low
    enough, it is met. A gets orthonormal rows, and B the singular values, so that a direction that
    is not used yet can still be learnt.

    Args:
        states: adapters with A `(r, in)` or `(r, in/groups, h, w)`, B `(out, r)` or `(out,
            r/groups, 1, 1)`.
        weights: of the states in the mean; they need not add up to 1.
    """
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    factors: dict[str, Tensor] = {}
    for a, b in lora_pairs(states[0]):
        downs = [state[a] for state in states]
        ups = [state[b] for state in states]
        down, up = _pair_mean(downs, ups, shares)
        factors[a] = down.to(torch.float32)
        factors[b] = up.to(torch.float32)
    return factors


def _pair_mean(
    downs: Sequence[Tensor], ups: Sequence[Tensor], shares: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the best A and B of one LoRA update, float64, in the shapes of the given ones."""
    down_shape = downs[0].shape
    up_shape = ups[0].shape
    rank = up_shape[1]
    # block-diagonal in a grouped convolution: each block by itself
    groups = down_shape[0] // rank
    down_blocks = [down.double().reshape(groups, rank, -1) for down in downs]
    up_blocks = []
    for up, share in zip(ups, shares, strict=True):
        up_blocks.append(up.double().reshape(groups, up_shape[0] // groups, -1) * share)

    best_downs = []
    best_ups = []
    for group in range(groups):
        wide = torch.cat([block[group] for block in up_blocks], dim=1)
        tall = torch.cat([block[group] for block in down_blocks])
        best_up, best_down = _best_factors(wide, tall, rank)
        best_ups.append(best_up)
        best_downs.append(best_down)
    return torch.cat(best_downs).reshape(down_shape), torch.cat(best_ups).reshape(up_shape)


def _best_factors(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return B (out, rank) and A (rank, in) with B·A ≈ `up` (out, m) · `down` (m, in).

    The product itself is not formed.
    """
    left, small_left = torch.linalg.qr(up)
    right, small_right = torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(small_left @ small_right.T)
    used = min(rank, len(values))
    best_up = up.new_zeros(up.shape[0], rank)
    best_up[:, :used] = left @ u[:, :used] * values[:used]

    # a column for each direction of the inputs
    directions = right @ v.T
    filled = min(rank, directions.shape[1])
    best_down = down.new_zeros(rank, down.shape[1])
    best_down[:filled] = directions[:, :filled].T
    return best_up, best_down
