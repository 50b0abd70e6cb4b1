"""Histograms of a table's columns that merge exactly: one bin for each value that bfloat16 has.

A value is rounded to bfloat16, eight significant bits, which is one of 65,280 finite numbers
whatever the column's unit. Everybody has the same bins, so counts of nodes add up to those of their
pooled records, and a quantile of the sum depends on nobody's share of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# bits of a float32 that bfloat16 leaves out
DROPPED = 16
# at most this far apart are neighbours, in parts of the value
STEP = 2.0**-7
# codes below have the sign +, those from here on −; the exponent of infinity and NaN is all ones
NEGATIVE = 0x8000
INFINITE = 0x7F80
LARGEST_CODE = 0xFFFF
LARGEST_VALUE = np.float32(3.3895314e38)


@dataclass(frozen=True)
class Histogram:
    """How often each rounded value occurs in one column.

        merged = count_values(here) + count_values(there)
        merged.quantile(50)

    Attributes:
        codes: upper halves of the values as float32, strictly rising, int64 `(m,)`.
        counts: of each, at least 1, int64 `(m,)`.
    """

    codes: np.ndarray
    counts: np.ndarray

    def __add__(self, other: Histogram) -> Histogram:
        """Return the histogram of both sets of values."""
        both = np.concatenate([self.codes, other.codes])
        codes, places = np.unique(both, return_inverse=True)
        counts = np.zeros(len(codes), np.int64)
        np.add.at(counts, places, np.concatenate([self.counts, other.counts]))
        return Histogram(codes, counts)

    @property
    def total(self) -> int:
        """Return how many values were counted."""
        return int(self.counts.sum())

    def quantile(self, percent: int) -> float:
        """Return the least counted value that at least so many percent of the values do not exceed;
        0 where there are no values.

        Of n values that is the one of rank ⌈percent · n / 100⌉, at least the first: whole numbers
        decide, and nothing is interpolated.
        """
        if len(self.codes) == 0:
            return 0.0
        values = values_of(self.codes)
        order = np.argsort(values)
        reached = np.cumsum(self.counts[order])
        rank = max(-(-percent * self.total // 100), 1)
        return float(values[order][np.searchsorted(reached, rank)])

    def mean_and_deviation(self) -> tuple[float, float]:
        """Return mean and standard deviation (population) of the rounded values; 0 and 0 where
        there are none.
        """
        if len(self.codes) == 0:
            return 0.0, 0.0
        values = values_of(self.codes).astype(np.float64)
        shares = self.counts / self.total
        mean = float(np.sum(shares * values))
        variance = float(np.sum(shares * (values - mean) ** 2))
        return mean, math.sqrt(variance)


@dataclass(frozen=True)
class TableHistograms:
    """Histograms of some columns of the same records.

    Attributes:
        records: how many.
        columns: a histogram each; values that are missing are in none.
    """

    records: int
    columns: tuple[Histogram, ...]

    def __add__(self, other: TableHistograms) -> TableHistograms:
        """Return the histograms of both sets of records."""
        pairs = zip(self.columns, other.columns, strict=True)
        merged = tuple(mine + theirs for mine, theirs in pairs)
        return TableHistograms(self.records + other.records, merged)


def empty_histograms(columns: int) -> TableHistograms:
    """Return the histograms of no records."""
    nothing = np.zeros(0, np.int64)
    return TableHistograms(0, (Histogram(nothing, nothing),) * columns)


def count_columns(values: np.ndarray) -> TableHistograms:
    """Return the histograms of the columns of float32 `(n, columns)`, NaN where missing."""
    return TableHistograms(len(values), tuple(map(count_values, values.T)))


def count_values(values: np.ndarray) -> Histogram:
    """Return the histogram of float32 `(n,)`; NaN is left out."""
    codes, counts = np.unique(codes_of(values[~np.isnan(values)]), return_counts=True)
    return Histogram(codes, counts.astype(np.int64))


# ── values ⇄ codes ────────────────────────────────────────────────────────────────────────────────
def codes_of(values: np.ndarray) -> np.ndarray:
    """Return the codes of float32 `(n,)`, int64: to the nearest bfloat16, ties to even; infinity
    is the largest finite number, −0 is 0.
    """
    finite = np.clip(values.astype(np.float32), -LARGEST_VALUE, LARGEST_VALUE)
    bits = finite.view(np.uint32).astype(np.int64)
    even = (bits >> DROPPED) & 1
    codes = (bits + (1 << (DROPPED - 1)) - 1 + even) >> DROPPED
    codes[codes == NEGATIVE] = 0
    return codes


def values_of(codes: np.ndarray) -> np.ndarray:
    """Return the values of codes, float32."""
    return (codes.astype(np.uint32) << np.uint32(DROPPED)).view(np.float32)


def check_histogram(histogram: Histogram, records: int) -> None:
    """Raise `ValueError` for a histogram that no column of so many records has."""
    codes = histogram.codes
    counts = histogram.counts
    if (codes < 0).any() or (codes > LARGEST_CODE).any() or (np.diff(codes) <= 0).any():
        raise ValueError("codes of values that are out of range or out of order")
    if ((codes & INFINITE) == INFINITE).any() or (codes == NEGATIVE).any():
        raise ValueError("codes of values that are no finite numbers")
    if (counts < 1).any() or (counts > records).any() or histogram.total > records:
        raise ValueError(f"counts of values that {records} records do not have")


def split_columns(
    sizes: np.ndarray, codes: np.ndarray, counts: np.ndarray
) -> tuple[Histogram, ...]:
    """Return the histograms of columns whose codes and counts lie one after the other."""
    ends = np.cumsum(sizes)[:-1]
    parts = zip(np.split(codes, ends), np.split(counts, ends), strict=True)
    return tuple(Histogram(codes, counts) for codes, counts in parts)
