"""Node-level privacy as pure functions over states: tensors by name in, tensors by name out.

Noisy mean: McMahan et al. 2018, "Learning differentially private recurrent language models", the
estimator f̃_f with equal weights and a fixed denominator. Adaptive clipping: Andrew et al. 2021,
"Differentially private learning with adaptive clipping". Flower's strategies are not used for
either: theirs scale the noise for equal weights over an average weighted by examples, and divide by
zero where an update is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedgraft.common.privacy.clipping import State, clip_update, noise_like
from fedgraft.common.privacy.randomness import Randomness

# η_C of Andrew et al. 2021, section 3
CLIP_RATE = 0.2
# of the budget, at most this part goes to the quantile where the cohort is small
QUANTILE_SHARE = 0.1


def noisy_mean(
    updates: Sequence[State],
    like: State,
    *,
    clip: float,
    deviation: float,
    expected: float,
    randomness: Randomness,
) -> dict[str, Tensor]:
    """Return (Σ clip(Δ) + N(0, deviation²)) / expected, in float64.

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
        for name, tensor in clip_update(update, clip).items():
            total[name] = total[name] + tensor
    return {name: tensor / expected for name, tensor in total.items()}


def split_noise(noise_multiplier: float, expected: float) -> tuple[float, float]:
    """Return noise for the updates and for the quantile that together cost as much as one.

    Andrew et al. 2021, theorem 1: z⁻² = z_Δ⁻² + (2σ_b)⁻², the bit b − ½ having sensitivity ½. σ_b
    is their expected / 20, or so much that the quantile takes a tenth of the whole.

    Args:
        noise_multiplier: z, of both together.

    Returns:
        z_Δ, the noise multiplier of the updates, and σ_b, the standard deviation on the sum of the
        bits.
    """
    least_on_bits = noise_multiplier / (2 * math.sqrt(QUANTILE_SHARE))
    on_bits = max(expected / 20, least_on_bits)
    on_updates = (noise_multiplier**-2 - (2 * on_bits) ** -2) ** -0.5
    return on_updates, on_bits


@dataclass(frozen=True)
class Quantile:
    """How the clipping norm is moved to a quantile of the updates' norms.

    Attributes:
        target: the part of updates that shall not be clipped.
        deviation: standard deviation of the noise on the sum of the bits, less a half each.
        expected: size of the cohort that was expected.
    """

    target: float
    deviation: float
    expected: float

    def next_clip(self, clip: float, within: Sequence[bool], randomness: Randomness) -> float:
        """Return C · exp(−0.2 (b̃ − target)), b̃ being the noisy part of updates within the norm C.

        Args:
            within: of each node that answered, whether its update was not clipped.
        """
        centred = sum(bit - 0.5 for bit in within)
        noise = self.deviation * float(randomness.normal(1)[0])
        part = 0.5 + (centred + noise) / self.expected
        part = min(1.0, max(0.0, part))
        return clip * math.exp(-CLIP_RATE * (part - self.target))
