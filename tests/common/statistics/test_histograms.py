"""Histograms of rounded values: exact in any deal, with quantiles that are values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgraft.common.statistics.histograms import (
    Histogram,
    check_histogram,
    codes_of,
    count_columns,
    count_values,
    values_of,
)

PERCENTS = (1, 10, 30, 50, 70, 90, 99)


def draw_values(count: int, seed: int = 0) -> np.ndarray:
    """Values of many sizes, with ties, both signs and holes."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=count) * 10.0 ** rng.integers(-6, 6, count)
    values[::7] = np.round(values[::7])
    values[::11] = np.nan
    return values.astype(np.float32)


def test_values_are_rounded_as_torch_rounds_them() -> None:
    """Values cut off instead of rounded lie below where the records are."""
    special = np.array([0.0, -0.0, 1.0, 65504.0, 1e-40], np.float32)
    values = np.concatenate([draw_values(5000), special])
    values = values[~np.isnan(values)]
    rounded = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(values_of(codes_of(values)), rounded)


def test_what_is_too_large_is_the_largest_and_minus_zero_is_zero() -> None:
    """A code of infinity would be refused at the server, and the hospital with it."""
    largest = np.finfo(np.float32).max
    values = np.array([largest, -largest, np.inf, -0.0, 0.0, -1e-44], np.float32)
    histogram = count_values(values)
    check_histogram(histogram, len(values))
    assert np.isfinite(values_of(histogram.codes)).all()
    assert histogram.total == len(values)
    assert dict(zip(histogram.codes.tolist(), histogram.counts.tolist(), strict=True))[0] == 3


@pytest.mark.parametrize("count", [1, 2, 9, 1000])
def test_mean_and_deviation_are_those_of_the_rounded_values(count: int) -> None:
    """A scale off by the size of the values: squares that cancel."""
    values = 1e6 + draw_values(count, seed=count)
    values[0] = 2e6
    known = values[~np.isnan(values)]
    rounded = torch.from_numpy(known).to(torch.bfloat16).double().numpy()
    mean, deviation = count_values(values).mean_and_deviation()
    np.testing.assert_allclose(mean, rounded.mean(), rtol=1e-12)
    np.testing.assert_allclose(deviation, rounded.std(), rtol=1e-9, atol=1e-6)


def test_a_column_without_values_has_mean_and_deviation_0() -> None:
    """NaN would enter every hospital's network."""
    nothing = count_values(np.full(5, np.nan, np.float32))
    assert nothing.mean_and_deviation() == (0.0, 0.0)


@pytest.mark.parametrize("count", [1, 2, 9, 99, 100, 101, 1000])
def test_quantiles_are_those_of_the_rounded_values(count: int) -> None:
    """numpy's own rule without interpolation, on the values as bfloat16."""
    values = draw_values(count, seed=count)
    if count > 1:
        values = values[1:]
    known = values[~np.isnan(values)]
    if len(known) == 0:
        known = values = np.array([3.0], np.float32)
    rounded = torch.from_numpy(known).to(torch.bfloat16).float().numpy()
    histogram = count_values(values)
    for percent in PERCENTS:
        expected = np.percentile(rounded, percent, method="inverted_cdf")
        assert histogram.quantile(percent) == expected


def test_any_deal_adds_up_to_the_same() -> None:
    """A quantile that depended on who has which record could not be checked by anybody."""
    values = draw_values(3000).reshape(1000, 3)
    whole = count_columns(values)
    rows = np.random.default_rng(1).permutation(1000)
    for nodes in (2, 20):
        first, *others = np.array_split(values[rows], nodes)
        merged = count_columns(first)
        for part in others:
            merged = merged + count_columns(part)
        assert merged.records == 1000
        for mine, theirs in zip(whole.columns, merged.columns, strict=True):
            np.testing.assert_array_equal(mine.codes, theirs.codes)
            np.testing.assert_array_equal(mine.counts, theirs.counts)


def test_no_values_and_one_value() -> None:
    """A column that nobody measured, and one that everybody measured alike."""
    nothing = count_values(np.full(5, np.nan, np.float32))
    assert (nothing.total, nothing.quantile(50)) == (0, 0.0)
    constant = count_values(np.full(5, 2.5, np.float32))
    assert {constant.quantile(percent) for percent in PERCENTS} == {2.5}


@pytest.mark.parametrize(
    ("codes", "counts", "words"),
    [
        ([5, 4], [1, 1], "out of order"),
        ([4, 4], [1, 1], "out of order"),
        ([-1, 4], [1, 1], "out of range"),
        ([4, 65536], [1, 1], "out of range"),
        ([0x7F80], [1], "no finite numbers"),
        ([0xFFC1], [1], "no finite numbers"),
        ([0x8000], [1], "no finite numbers"),
        ([4, 5], [0, 1], "10 records do not have"),
        ([4, 5], [-1, 2], "10 records do not have"),
        ([4, 5], [6, 6], "10 records do not have"),
        ([4, 5], [2**62, 2**62], "10 records do not have"),
    ],
)
def test_histograms_that_no_records_have(codes: list[int], counts: list[int], words: str) -> None:
    """One wrong count moves every quantile of everybody."""
    with pytest.raises(ValueError, match=words):
        check_histogram(Histogram(np.array(codes), np.array(counts)), 10)
