"""Sums by class of features of norm 1, with noise: what leaves a node under differential privacy.

A record moves them by a vector of norm √(1 + w²) at most: its features, within norm 1 and rounded
towards zero, go into the sums under a code of norm 1 for its class, and the count of its class
moves by the weight w. On features that are whitened by public data class means alone lose nothing
(docs/results.md). Where features go together and there are many records for the noise, their
products with one another may be released, too, in the same exchange: a record moves these by 1 at
most, each unordered pair once and under √2 less noise, as if both places of a symmetric matrix had
been noised and averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

# of a count beside the sums: it makes their noise larger by √(1 + w²) − 1, three percent
COUNT_WEIGHT = 0.25
# bits of a feature's magnitude; the range is ±1
BITS = 20
SCALE = 2**BITS
COUNT_STEP = round(COUNT_WEIGHT * SCALE)
# what one unit's data moves the sums by, as integers, L2
SENSITIVITY = math.sqrt(SCALE**2 + COUNT_STEP**2)
# bits of a feature's magnitude in products: these are noisy to far more than the last of them, and
# sums of 2^28 records are exact
PRODUCT_BITS = 12
PRODUCT_SCALE = 2 ** (2 * PRODUCT_BITS)
# deviation of the noise on a product for each step of that on a sum
PRODUCT_STEPS = PRODUCT_SCALE // SCALE
# more noise than is counted, by this part: it covers what parts discrete noise from continuous
SLACK = 2.0**-14
# of what is released at once, and of the noise multiplier: within these it does, see `is_covered`
MOST_NUMBERS = 4_000_000
NOISE_MULTIPLIERS = (0.25, 1e6)

# (σ, count) → whole numbers of noise
Draw = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class NoisySums:
    """Sums with noise, of one node or of several.

        noisy = NoisySums(sums, counts, variance=0).with_noise(sigma, draw)
        everywhere = noisy + other

    Attributes:
        sums: Σ φ codeᵀ, int64 `(d, codes)`.
        counts: Σ COUNT_STEP for each class, or for all together, int64 `(classes,)` or `(1,)`.
        variance: of the noise on each integer of these.
        products: Σ φ φᵀ on and above the diagonal, row by row, int64 `(d (d + 1) / 2,)`; empty
            where they are not released.
    """

    sums: np.ndarray
    counts: np.ndarray
    variance: float
    products: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __add__(self, other: NoisySums) -> NoisySums:
        """Return the sums of both; their noise is independent."""
        return NoisySums(
            self.sums + other.sums,
            self.counts + other.counts,
            self.variance + other.variance,
            self.products + other.products,
        )

    @property
    def product_deviation(self) -> float:
        """Return the deviation of the noise on a feature's product with itself; between two
        features it is √2 less.
        """
        return self.variance**0.5 * PRODUCT_STEPS / PRODUCT_SCALE

    def with_noise(self, sigma: int, draw: Draw) -> NoisySums:
        """Return the sums with noise of deviation σ on each number, and on products in their own
        steps.
        """
        noise = draw(sigma, self.sums.size + self.counts.size)
        on_sums = noise[: self.sums.size].reshape(self.sums.shape)
        on_counts = noise[self.sums.size :]
        noisy = replace(
            self,
            sums=self.sums + on_sums,
            counts=self.counts + on_counts,
            variance=self.variance + float(sigma) ** 2,
        )
        if self.products.size == 0:
            return noisy
        return replace(noisy, products=self.products + self._draw_on_products(sigma, draw))

    def _draw_on_products(self, sigma: int, draw: Draw) -> np.ndarray:
        own = find_diagonal(len(self.sums))
        deviation = sigma * PRODUCT_STEPS
        noise = draw(math.ceil(deviation / math.sqrt(2)), len(own))
        noise[own] = draw(deviation, int(own.sum()))
        return noise


def zero_noisy(features: int, codes: int, counts: int, products: int = 0) -> NoisySums:
    """Return the sums over no records, without noise."""
    return NoisySums(
        np.zeros((features, codes), np.int64),
        np.zeros(counts, np.int64),
        0.0,
        np.zeros(products, np.int64),
    )


def count_products(features: int) -> int:
    """Return how many unordered pairs of features there are, each with itself among them."""
    return features * (features + 1) // 2


def find_diagonal(features: int) -> np.ndarray:
    """Return which products are those of a feature with itself, bool `(d (d + 1) / 2,)`."""
    rows, columns = np.triu_indices(features)
    return rows == columns


def sigma_of(noise_multiplier: float, *, products: bool = False) -> int:
    """Return the deviation of the discrete noise on a sum for a multiplier of the sensitivity.

    It is not below `noise_multiplier`'s continuous noise in any composition, for at most
    `MOST_NUMBERS` numbers and a multiplier within `NOISE_MULTIPLIERS`.

    Args:
        products: whether products are released beside the sums: a record moves these as far again.
    """
    moved = SENSITIVITY
    if products:
        moved = math.sqrt(SENSITIVITY**2 + SCALE**2)
    return math.ceil(noise_multiplier * moved * (1 + SLACK))


def sum_units(
    features: np.ndarray,
    codes: np.ndarray,
    counted: np.ndarray,
    shares: np.ndarray,
    *,
    products: bool = False,
) -> NoisySums:
    """Return the sums over records, without noise yet.

    Args:
        features: of norm 1 or less, float `(n, d)`; what is not finite counts as 0.
        codes: of each record's class, norm 1 or less, `(n, codes)`.
        counted: 1 in the column of each record's count, `(n, classes)` or `(n, 1)`.
        shares: of each record in its unit: 1, or one over the records of its patient, `(n,)`.
        products: whether products of the features are summed, too.
    """
    rounded = round_within(features)
    sums = np.zeros((features.shape[1], codes.shape[1]), np.int64)
    for column in range(codes.shape[1]):
        weighted = np.trunc(rounded * (codes[:, column] * shares)[:, None])
        sums[:, column] = weighted.astype(np.int64).sum(0)
    counts = np.trunc(COUNT_STEP * counted * shares[:, None]).astype(np.int64).sum(0)
    summed = NoisySums(sums, counts, variance=0.0)
    if not products:
        return summed
    return replace(summed, products=multiply_units(features, shares))


def multiply_units(features: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return Σ φ φᵀ on and above the diagonal, int64, exact for fewer than 2^28 records.

    Features are rounded under the root of a record's share: their products are within the share.
    """
    rounded = round_within(features, 2**PRODUCT_BITS, shares)
    whole = rounded.T @ rounded
    return whole[np.triu_indices(features.shape[1])].astype(np.int64)


def round_within(
    features: np.ndarray, scale: int = SCALE, shares: np.ndarray | None = None
) -> np.ndarray:
    """Return features as integers whose norm is at most the scale, towards zero, in float64.

    float32 of norm 1 may be longer by a last bit: such rows are shortened first.

    Args:
        shares: parts of 1 that squared norms are kept within, `(n,)`; default 1 each.
    """
    parts = np.ones(len(features)) if shares is None else shares
    values = np.nan_to_num(np.asarray(features, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.sqrt((values**2).sum(1, keepdims=True))
    values = values / np.maximum(norms, 1.0)
    rounded = np.trunc(values * scale * np.sqrt(parts)[:, None])
    # squares of integers: exact below 2^53
    while (long := (rounded**2).sum(1) > parts * scale**2).any():
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
