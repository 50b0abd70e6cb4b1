"""Sums by class of features of norm 1, with noise: what leaves a node under differential privacy.

A record moves them by a vector of norm √(1 + w²) at most: its features, within norm 1 and rounded
towards zero, go into the sums under a code of norm 1 for its class, and the count of its class
moves by the weight w. No Gram matrix is released: on features that are whitened by public data
class means alone lose nothing (docs/results.md), and d² noisy numbers would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# of a count beside the sums: it makes their noise larger by √(1 + w²) − 1, three percent
COUNT_WEIGHT = 0.25
# bits of a feature's magnitude; the range is ±1
BITS = 20
SCALE = 2**BITS
COUNT_STEP = round(COUNT_WEIGHT * SCALE)
# what one unit's data moves the sums by, as integers, L2
SENSITIVITY = math.sqrt(SCALE**2 + COUNT_STEP**2)
# more noise than is counted, by this part: it covers what parts discrete noise from continuous
SLACK = 2.0**-14
# of what is released at once, and of the noise multiplier: within these it does, see `is_covered`
MOST_NUMBERS = 4_000_000
NOISE_MULTIPLIERS = (0.25, 1e6)


@dataclass(frozen=True)
class NoisySums:
    """Sums with noise, of one node or of several.

        noisy = NoisySums(sums, counts, variance=0).with_noise(noise, sigma)
        everywhere = noisy + other

    Attributes:
        sums: Σ φ codeᵀ, int64 `(d, codes)`.
        counts: Σ COUNT_STEP for each class, or for all together, int64 `(classes,)` or `(1,)`.
        variance: of the noise on each integer.
    """

    sums: np.ndarray
    counts: np.ndarray
    variance: float

    def __add__(self, other: NoisySums) -> NoisySums:
        """Return the sums of both; their noise is independent."""
        return NoisySums(
            self.sums + other.sums,
            self.counts + other.counts,
            self.variance + other.variance,
        )

    def with_noise(self, noise: np.ndarray, sigma: int) -> NoisySums:
        """Return the sums with noise `(sums.size + counts.size,)` of deviation σ on each number."""
        on_sums = noise[: self.sums.size].reshape(self.sums.shape)
        on_counts = noise[self.sums.size :]
        return NoisySums(
            self.sums + on_sums, self.counts + on_counts, self.variance + float(sigma) ** 2
        )


def zero_noisy(features: int, codes: int, counts: int) -> NoisySums:
    """Return the sums over no records, without noise."""
    return NoisySums(np.zeros((features, codes), np.int64), np.zeros(counts, np.int64), 0.0)


def sigma_of(noise_multiplier: float) -> int:
    """Return the deviation of the discrete noise for a multiplier of the sensitivity.

    It is not below `noise_multiplier`'s continuous noise in any composition, for at most
    `MOST_NUMBERS` numbers and a multiplier within `NOISE_MULTIPLIERS`.
    """
    return math.ceil(noise_multiplier * SENSITIVITY * (1 + SLACK))


def sum_units(
    features: np.ndarray,
    codes: np.ndarray,
    counted: np.ndarray,
    shares: np.ndarray,
) -> NoisySums:
    """Return the sums over records, without noise yet.

    Args:
        features: of norm 1 or less, float `(n, d)`; what is not finite counts as 0.
        codes: of each record's class, norm 1 or less, `(n, codes)`.
        counted: 1 in the column of each record's count, `(n, classes)` or `(n, 1)`.
        shares: of each record in its unit: 1, or one over the records of its patient, `(n,)`.
    """
    rounded = round_within(features)
    sums = np.zeros((features.shape[1], codes.shape[1]), np.int64)
    for column in range(codes.shape[1]):
        weighted = np.trunc(rounded * (codes[:, column] * shares)[:, None])
        sums[:, column] = weighted.astype(np.int64).sum(0)
    counts = np.trunc(COUNT_STEP * counted * shares[:, None]).astype(np.int64).sum(0)
    return NoisySums(sums, counts, variance=0.0)


def round_within(features: np.ndarray) -> np.ndarray:
    """Return features as integers whose norm is at most SCALE, towards zero, in float64.

    float32 of norm 1 may be longer by a last bit: such rows are shortened first.
    """
    values = np.nan_to_num(np.asarray(features, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.sqrt((values**2).sum(1, keepdims=True))
    values = values / np.maximum(norms, 1.0)
    rounded = np.trunc(values * SCALE)
    # squares of integers: exact below 2^53
    while (long := (rounded**2).sum(1) > SCALE**2).any():
        rounded[long] = np.trunc(rounded[long] * (1 - 2.0**-20))
    return rounded


def simplex(classes: int) -> np.ndarray:
    """Return a code of norm 1 for each class, as far from one another as can be, that add up to 0:
    `(classes, classes − 1)`; for two classes −1 and 1.
    """
    centred = np.eye(classes) - 1 / classes
    _, _, directions = np.linalg.svd(centred)
    codes = centred @ directions[: classes - 1].T
    codes /= np.sqrt((codes**2).sum(1, keepdims=True))
    # the sign is the singular vectors' own: the last class is the positive one
    return codes * np.sign(codes[-1, :1])
