"""Sums over records that merge exactly: what a closed-form head is solved from.

Features are rounded to integers before they are multiplied, so that every product and every sum is
exact: the same records give the same sums to the bit, whatever node holds which of them and in
which order they are added. Sums over records for a ridge head: Fanì et al. 2024 (Fed3R), section 3;
He et al. 2025 (AFL).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

# float64 holds integers exactly up to here, in whatever order they are added
EXACT_FLOAT = 2**53
LARGEST_SUM = 2**63 - 1
# a Gram matrix of fewer records than so many times its features excludes nearly every record that
# is not among them for certain (docs/leaks.md)
LEAST_RECORDS_A_FEATURE = 2


@dataclass(frozen=True)
class Rounding:
    """How features become integers: value × 2^bits / bound, rounded, within ±2^bits.

        rounding = Rounding(bound=64.0, bits=20)
        rounding.to_integers(np.array([[0.5, -100.0]]))  # [[8192, -1048576]]

    Attributes:
        bound: features beyond it are clipped to it; public.
        bits: of the magnitude.
    """

    bound: float
    bits: int = 20

    @property
    def unit(self) -> float:
        """Return what one integer step is worth."""
        return self.bound / 2**self.bits

    @property
    def most_records(self) -> int:
        """Return of how many records sums are exact in 64 bits."""
        return LARGEST_SUM >> (2 * self.bits)

    def to_integers(self, features: np.ndarray) -> np.ndarray:
        """Return features `(n, d)` as integers in float64; to the nearest, ties to even."""
        scaled = np.asarray(features, np.float64) / self.unit
        limit = float(2**self.bits)
        return np.clip(np.rint(scaled), -limit, limit)


@dataclass(frozen=True)
class GramSums:
    """Sums over records of features φ (integers) and of targets t (integers).

        sums = sum_records(rounding.to_integers(features), targets)
        everywhere = sums + other

    Attributes:
        records: how many.
        gram: Σ φφᵀ, int64 `(d, d)`; its diagonal alone, `(d,)`, where no head reads the products
            of one feature with another.
        total: Σ φ, int64 `(d,)`.
        cross: Σ φ tᵀ, int64 `(d, k)`.
        targets: Σ t, int64 `(k,)`.
        squares: Σ t², int64 `(k,)`.
    """

    records: int
    gram: np.ndarray
    total: np.ndarray
    cross: np.ndarray
    targets: np.ndarray
    squares: np.ndarray

    def __add__(self, other: GramSums) -> GramSums:
        """Return the sums over both sets of records."""
        return GramSums(
            self.records + other.records,
            self.gram + other.gram,
            self.total + other.total,
            self.cross + other.cross,
            self.targets + other.targets,
            self.squares + other.squares,
        )

    def __sub__(self, other: GramSums) -> GramSums:
        """Return the sums without some of the records, as if they had never been there."""
        return self + other.times(-1)

    def times(self, factor: int) -> GramSums:
        """Return the sums over every record that many times."""
        return replace(
            self,
            records=factor * self.records,
            gram=factor * self.gram,
            total=factor * self.total,
            cross=factor * self.cross,
            targets=factor * self.targets,
            squares=factor * self.squares,
        )


def zero_sums(features: int, targets: int, *, products: bool = True) -> GramSums:
    """Return the sums over no records, with or without products of features."""
    shape = (features, features) if products else (features,)
    return GramSums(
        records=0,
        gram=np.zeros(shape, np.int64),
        total=np.zeros(features, np.int64),
        cross=np.zeros((features, targets), np.int64),
        targets=np.zeros(targets, np.int64),
        squares=np.zeros(targets, np.int64),
    )


def sum_records(
    features: np.ndarray, targets: np.ndarray, bits: int, *, products: bool = True
) -> GramSums:
    """Return the sums over some records.

    Products are taken by float64 matrix products over so few records that every partial sum is an
    integer below 2^53, exact in any order; the rest is added in int64.

    Args:
        features: integers within ±2^bits, float64 `(n, d)`.
        targets: integers within ±2^bits, int64 `(n, k)`.
        products: of features with one another, or with themselves alone.

    Raises:
        ValueError: too many records for 64 bits.
    """
    records = len(features)
    if records > LARGEST_SUM >> (2 * bits):
        raise ValueError(f"{records} records of {bits} bits do not fit into sums of 64 bits")
    sums = zero_sums(features.shape[1], targets.shape[1], products=products)
    at_once = max(EXACT_FLOAT >> (2 * bits), 1)
    for start in range(0, records, at_once):
        part = features[start : start + at_once]
        answers = targets[start : start + at_once]
        gram = part.T @ part if products else (part**2).sum(0)
        sums += GramSums(
            records=len(part),
            gram=gram.astype(np.int64),
            total=part.sum(0).astype(np.int64),
            cross=(part.T @ answers.astype(np.float64)).astype(np.int64),
            targets=answers.sum(0),
            squares=(answers**2).sum(0),
        )
    return sums
