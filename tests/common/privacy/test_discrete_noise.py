"""Discrete Gaussian noise against its own probabilities, and the bound on what parts it from the
continuous one against a sum over all integers.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare, kstest, norm

from fedgraft.common.privacy.discrete_noise import distance_to_gaussian, draw_discrete_gaussian
from fedgraft.common.privacy.randomness import Randomness


def probabilities(sigma: float, most: int) -> np.ndarray:
    """Return the probabilities of −most … most, by their definition."""
    weights = np.exp(-(np.arange(-most, most + 1) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


@pytest.mark.parametrize("sigma", [1, 2, 7])
def test_small_noise_has_its_probabilities(sigma: int) -> None:
    """A coin that falls a little too often; a zero that is counted twice."""
    most = 4 * sigma
    drawn = draw_discrete_gaussian(sigma, 40_000, Randomness(b"test"))
    inside = drawn[np.abs(drawn) <= most]
    counts = np.bincount(inside + most, minlength=2 * most + 1)
    expected = probabilities(sigma, most) * len(inside)
    common = expected > 5
    scaled = expected[common] * counts[common].sum() / expected[common].sum()
    assert chisquare(counts[common], scaled).pvalue > 1e-3


def test_large_noise_is_next_to_normal() -> None:
    """Where σ is in millions, as over features, whole multiples and rests must fit together."""
    sigma = 3_000_000
    drawn = draw_discrete_gaussian(sigma, 20_000, Randomness(b"large"))
    assert kstest(drawn / sigma, norm.cdf).pvalue > 1e-3


def test_two_draws_differ_and_a_seeded_one_repeats() -> None:
    """Noise that repeats by itself protects nobody; a simulation's must be able to."""
    first = draw_discrete_gaussian(1000, 50, Randomness())
    assert not np.array_equal(first, draw_discrete_gaussian(1000, 50, Randomness()))
    seeded = draw_discrete_gaussian(1000, 50, Randomness(b"a"))
    assert np.array_equal(seeded, draw_discrete_gaussian(1000, 50, Randomness(b"a")))


@pytest.mark.parametrize("sigma", [0, -1, 2**41])
def test_noise_that_cannot_be_is_refused(sigma: int) -> None:
    """Without noise there is no privacy, whatever was counted."""
    with pytest.raises(ValueError, match="σ"):
        draw_discrete_gaussian(sigma, 1, Randomness())


@pytest.mark.parametrize("sigma", [16, 40, 200])
def test_the_distance_to_the_continuous_noise_is_bounded(sigma: int) -> None:
    """The bound is added to δ: were it too small, δ would be wrong."""
    integers = np.arange(-12 * sigma, 12 * sigma + 1)
    edges = norm.cdf((np.append(integers, integers[-1] + 1) - 0.5) / sigma)
    rounded = np.diff(edges)
    discrete = probabilities(sigma, 12 * sigma)
    apart = 0.5 * np.abs(rounded - discrete).sum()
    assert 0 < apart <= distance_to_gaussian(sigma, 1) < 20 * apart
