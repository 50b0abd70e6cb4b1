"""Sums are those of the pooled records to the bit, and what is beyond their range is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common.statistics.gram_sums import (
    EXACT_FLOAT,
    GramSums,
    Rounding,
    sum_records,
    zero_sums,
)


def same(one: GramSums, other: GramSums) -> bool:
    names = ("records", "gram", "total", "cross", "targets", "squares")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def draw_records(seed: int, records: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.integers(-(2**bits), 2**bits + 1, (records, 5)).astype(np.float64)
    return features, rng.integers(-3, 4, (records, 2))


@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(8, 21), st.data())
def test_any_deal_gives_the_same_sums(seed: int, records: int, bits: int, data: st.DataObject):
    """A sum that depended on the deal would tell hospitals apart, and no run could be repeated."""
    features, targets = draw_records(seed, records, bits)
    pooled = sum_records(features, targets, bits)
    owners = np.array(data.draw(st.lists(st.integers(0, 7), min_size=records, max_size=records)))
    dealt = zero_sums(5, 2)
    for node in data.draw(st.permutations(range(8))):
        mine = owners == node
        if mine.any():
            dealt = dealt + sum_records(features[mine], targets[mine], bits)
    assert same(dealt, pooled)


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(8, 21))
def test_sums_are_those_of_whole_numbers_of_any_size(seed: int, records: int, bits: int):
    """float64 that rounds in a product's sum would be exact here and wrong there."""
    features, targets = draw_records(seed, records, bits)
    whole = [[int(value) for value in row] for row in features]
    sums = sum_records(features, targets, bits)
    for i in range(5):
        for j in range(5):
            assert int(sums.gram[i, j]) == sum(row[i] * row[j] for row in whole)
        for k in range(2):
            assert int(sums.cross[i, k]) == sum(
                row[i] * int(answers[k]) for row, answers in zip(whole, targets, strict=True)
            )


def test_many_records_at_the_edge_of_the_range():
    """Where every product is 2^(2·bits), one record more in a float64 product would round."""
    bits = 21
    records = (EXACT_FLOAT >> (2 * bits)) * 3 + 1
    features = np.full((records, 2), 2.0**bits)
    sums = sum_records(features, np.ones((records, 1), np.int64), bits)
    assert int(sums.gram[0, 1]) == records << (2 * bits)


def test_a_record_that_is_taken_back_was_never_there():
    """What a hospital takes back must not stay in the last bits."""
    features, targets = draw_records(3, 50, 20)
    everything = sum_records(features, targets, 20)
    without = everything - sum_records(features[:1], targets[:1], 20)
    assert same(without, sum_records(features[1:], targets[1:], 20))


def test_more_records_than_64_bits_hold_are_refused():
    """A sum that wraps around is a wrong model without a word."""
    most = Rounding(1.0, 21).most_records
    assert most * 2**42 < 2**63 <= (most + 1) * 2**42 + 2**42
    with pytest.raises(ValueError, match="do not fit"):
        sum_records(np.zeros((most + 1, 0)), np.zeros((most + 1, 0), np.int64), 21)


def test_rounding_is_to_the_nearest_and_within_the_bound():
    """A feature beyond the public bound would break the range that exactness rests on."""
    rounding = Rounding(bound=2.0, bits=8)
    values = np.array([[0.0, 2.0 / 256 * 1.4, -5.0, 5.0]])
    assert rounding.to_integers(values).tolist() == [[0.0, 1.0, -256.0, 256.0]]
