"""Combining adapters, as pure functions over states: tensors by name in, tensors by name out.

Noisy mean: McMahan et al. 2018, "Learning differentially private recurrent language models", the
estimator f̃_f with equal weights and a fixed denominator. Adaptive clipping: Andrew et al. 2021,
"Differentially private learning with adaptive clipping". Flower's strategies are not used for
either: theirs scale the noise for equal weights over an average weighted by examples, and divide by
zero where an update is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedgraft.common.privacy.clipping import State, clipped, noise_like
from fedgraft.common.privacy.randomness import Randomness

CLIP_RATE = 0.2  # η_C of Andrew et al. 2021, section 3
QUANTILE_SHARE = (
    0.1  # of the budget, at most this part goes to the quantile where the cohort is small
)


# ── node-level privacy ────────────────────────────────────────────────────────────────────────────
def noisy_mean(
    updates: Sequence[State],
    like: State,
    *,
    clip: float,
    deviation: float,
    expected: float,
    randomness: Randomness,
) -> dict[str, Tensor]:
    """(Σ clip(Δ) + N(0, deviation²)) / expected, in float64.

    One node moves the sum by at most `clip`, and the mean by clip / expected, whoever else takes
    part: `expected` does not depend on how many answered. With deviation = z · clip the noise
    multiplier is z.

    Args:
        updates: Δ of each node that answered; each is clipped here (again). There may be none.
        like: names and shapes of the result.
        clip: L2 norm of one node's update at most.
        deviation: standard deviation of the noise on the sum.
        expected: size of the cohort that was expected.
    """
    total = noise_like(like, deviation, randomness)
    for update in updates:
        for name, tensor in clipped(update, clip).items():
            total[name] = total[name] + tensor
    return {name: tensor / expected for name, tensor in total.items()}


def split_noise(noise_multiplier: float, expected: float) -> tuple[float, float]:
    """Noise for the updates and for the quantile that together cost as much as one noise multiplier
    z.

    Andrew et al. 2021, theorem 1: z⁻² = z_Δ⁻² + (2σ_b)⁻², the bit b − ½ having sensitivity ½. σ_b
    is their expected / 20, or so much that the quantile takes a tenth of the whole.

    Returns:
        z_Δ, the noise multiplier of the updates, and σ_b, the standard deviation on the sum of the
        bits.
    """
    on_bits = max(expected / 20, noise_multiplier / (2 * math.sqrt(QUANTILE_SHARE)))
    return (noise_multiplier**-2 - (2 * on_bits) ** -2) ** -0.5, on_bits


def next_clip(
    clip: float,
    within: Sequence[bool],
    *,
    quantile: float,
    deviation: float,
    expected: float,
    randomness: Randomness,
) -> float:
    """C · exp(−0.2 (b̃ − quantile)), where b̃ is the noisy part of updates whose norm was within C.

    Args:
        within: of each node that answered, whether its update was not clipped.
        deviation: standard deviation of the noise on the sum of the bits, less a half each.
        expected: size of the cohort that was expected.
    """
    centred = sum(bit - 0.5 for bit in within) + deviation * float(randomness.normal(1)[0])
    part = min(1.0, max(0.0, 0.5 + centred / expected))
    return clip * math.exp(-CLIP_RATE * (part - quantile))


# ── LoRA ──────────────────────────────────────────────────────────────────────────────────────────
def lora_pairs(state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Names of A and B of every LoRA update in a state."""
    pairs = [
        (name, name.replace(".lora_A.", ".lora_B.")) for name in sorted(state) if ".lora_A." in name
    ]
    return [(a, b) for a, b in pairs if b in state]


def svd_mean(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """Factors A and B of every LoRA update whose product is the best of their rank for the mean of
    the products.

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
    found: dict[str, Tensor] = {}
    for a, b in lora_pairs(states[0]):
        shape_a, shape_b = states[0][a].shape, states[0][b].shape
        groups = (
            shape_a[0] // shape_b[1]
        )  # block-diagonal in a grouped convolution: each block by itself
        downs = [state[a].double().reshape(groups, shape_b[1], -1) for state in states]
        ups = [
            state[b].double().reshape(groups, shape_b[0] // groups, -1) * (weight / total)
            for state, weight in zip(states, weights, strict=True)
        ]
        blocks = [
            _best_factors(
                torch.cat([up[g] for up in ups], dim=1),
                torch.cat([down[g] for down in downs]),
                shape_b[1],
            )
            for g in range(groups)
        ]
        found[a] = torch.cat([down for _, down in blocks]).reshape(shape_a).to(torch.float32)
        found[b] = torch.cat([up for up, _ in blocks]).reshape(shape_b).to(torch.float32)
    return found


def _best_factors(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`up` (out, m) · `down` (m, in) ≈ B (out, rank) · A (rank, in), without forming the
    product.
    """
    left, small_left = torch.linalg.qr(up)
    right, small_right = torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(small_left @ small_right.T)
    kept = min(rank, len(values))
    best_up, best_down = up.new_zeros(up.shape[0], rank), down.new_zeros(rank, down.shape[1])
    best_up[:, :kept] = left @ u[:, :kept] * values[:kept]
    directions = right @ v.T  # a column for each direction of the inputs
    fill = min(rank, directions.shape[1])
    best_down[:fill] = directions[:, :fill].T
    return best_up, best_down
