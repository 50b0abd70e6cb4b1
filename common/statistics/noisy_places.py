"""Noisy sums of records that have many places: the tokens of a text, the pixels of an image.

The places of a record share its weight of 1 among them, and all of them together move the sums no
further than a record that is one row does. Let φ be a place's features as whole numbers, of norm
S = SCALE at most, w ≥ 0 its share as a whole number of parts of W = WHOLE, and Σ w ≤ W over the
record's places, each of which is in one column of the sums. Then

    |Σ w φ codeᵀ| ≤ Σ w |φ| ≤ W S,    |Σ w countedᵀ| ≤ Σ w ≤ W,    |Σ w φ φᵀ| ≤ Σ w |φ|²

as norms over all numbers. Divided by W and cut towards zero, which lengthens no number, a record's
sums are within S, its counts within COUNT_STEP: with SENSITIVITY both together, as in
`noisy_sums.py`; its products are within those of a record of one row, too. What is added up are
whole numbers below 2^53, so float64 has no rounding that would have to be bounded. Cutting place by
place would be as private, and leave nothing of an image of many pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from torch import Tensor

from fedgraft.common.statistics.noisy_sums import (
    COUNT_STEP,
    PRODUCT_BITS,
    NoisySums,
    round_within,
)

# parts of a record's weight: more places than that have none
WHOLE = 2**28


@dataclass(frozen=True)
class Places:
    """What noisy sums are made of where a record has many places.

    Attributes:
        features: of norm 1 or less, float `(m, d)`; what is not finite counts as 0.
        codes: 1 in the column of each place's class, else 0, `(m, codes)`.
        counted: 1 in the column of each place's count, else 0, `(m, counts)`.
        parts: of each place in its record, not negative, 1 together at most, `(m,)`.
    """

    features: np.ndarray
    codes: np.ndarray
    counted: np.ndarray
    parts: np.ndarray


def share_halves(answers: Tensor) -> np.ndarray:
    """Return each place's part of its record `(n, places)`: half of it those of class 0, a mask's
    background or the tokens of no entity, and half all others, so that the many do not drown the
    few. A place below 0 is none of its record's and has no part.
    """
    values = answers.numpy()
    return 0.5 * _share_evenly(values == 0) + 0.5 * _share_evenly(values > 0)


def _share_evenly(here: np.ndarray) -> np.ndarray:
    return here / np.maximum(here.sum(1, keepdims=True), 1)


def sum_places(places: Places, share: float, *, products: bool = False) -> NoisySums:
    """Return what one record adds to the sums, without noise yet.

    How long it takes depends on how many places there are, and on nothing that is in them.

    Args:
        share: of the record in its unit: 1, or one over the records of its patient.
        products: whether products of the features are summed, too.
    """
    parts = np.floor(places.parts * WHOLE)
    sums = round_within(places.features).T @ (places.codes * parts[:, None])
    counts = COUNT_STEP * (parts @ places.counted)
    summed = NoisySums(_cut(sums, share), _cut(counts, share), variance=0.0)
    if not products:
        return summed
    rounded = round_within(places.features, 2**PRODUCT_BITS)
    whole = (rounded * parts[:, None]).T @ rounded
    return replace(summed, products=_cut(whole[_find_pairs(len(whole))], share))


@lru_cache(maxsize=1)
def _find_pairs(features: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the products on and above the diagonal are: the same for every record."""
    return np.triu_indices(features)


def _cut(parts: np.ndarray, share: float) -> np.ndarray:
    """Return whole numbers of parts as whole numbers, towards zero, of them a record's share."""
    return np.trunc(np.trunc(parts / WHOLE) * share).astype(np.int64)
