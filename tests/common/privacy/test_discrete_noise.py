"""Discrete Gaussian noise against its own probabilities, what it hides against sums over all
integers and the continuous noise's closed form, and whole releases against their stated ε.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, chisquare, kstest, norm

from fedgraft.common.privacy.discrete_noise import (
    LARGEST_SIGMA,
    draw_discrete_gaussian,
    is_covered,
)
from fedgraft.common.privacy.noise_search import noise_for
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.statistics.noisy_sums import (
    MOST_NUMBERS,
    NOISE_MULTIPLIERS,
    SENSITIVITY,
    SLACK,
    sigma_of,
    sum_units,
)


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


def hidden_by_continuous(noise_multiplier: float, epsilon: np.ndarray) -> np.ndarray:
    """Return δ(ε) of the Gaussian mechanism (Balle and Wang 2018, theorem 8)."""
    mu = 1 / noise_multiplier
    return norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)


def hidden_by_discrete(sigma: int, shift: int, epsilon: np.ndarray) -> np.ndarray:
    """Return δ(ε) of discrete noise on one integer that moves by `shift`, summed over integers."""
    integers = np.arange(-14 * sigma, 14 * sigma + 1)
    here = np.exp(-(integers**2) / (2 * sigma**2))
    there = np.exp(-((integers - shift) ** 2) / (2 * sigma**2))
    total = here.sum()
    lost = np.maximum(here - np.exp(epsilon)[:, None] * there, 0).sum(1)
    return lost / total


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("sensitivity", [400, 1600])
def test_a_little_more_discrete_noise_hides_as_much(
    noise_multiplier: float, sensitivity: int
) -> None:
    """The ledger counts continuous noise: did the discrete one hide less, ε would be untrue."""
    slack = 1e-3
    assert is_covered(noise_multiplier, sensitivity, 1, slack)
    epsilon = np.linspace(-3, 12, 61)
    sigma = math.ceil((1 + slack) * noise_multiplier * sensitivity)
    discrete = hidden_by_discrete(sigma, sensitivity, epsilon)
    assert (discrete <= hidden_by_continuous(noise_multiplier, epsilon) + 1e-14).all()


def test_coarse_integers_are_not_covered() -> None:
    """Of small σ the discrete noise is another one, and says so."""
    assert not is_covered(1.0, 2, 1, 1e-6)
    assert not is_covered(0.05, 2**20, 1, 2.0**-14)
    epsilon = np.linspace(0, 3, 61)
    apart = hidden_by_discrete(1, 1, epsilon) - hidden_by_continuous(1.0, epsilon)
    assert apart.max() > 1e-3


@pytest.mark.parametrize("noise_multiplier", NOISE_MULTIPLIERS)
def test_sums_are_covered_within_their_limits(noise_multiplier: float) -> None:
    """The limits at the node are those for which it is proved."""
    assert is_covered(noise_multiplier, SENSITIVITY, MOST_NUMBERS, SLACK)
    assert 1 <= sigma_of(noise_multiplier) <= LARGEST_SIGMA


# ── releases ──────────────────────────────────────────────────────────────────────────────────────
RELEASES = 100_000
# features of one release, so small that the likelihood ratio of all numbers can be looked at
FEW = 3


def exact_sums(records: int) -> np.ndarray:
    """Return what a node sums over so many equal records of norm 1, `(numbers,)`."""
    features = np.full((records, FEW), FEW**-0.5)
    once = np.ones((records, 1))
    sums = sum_units(features, once, once, np.ones(records))
    return np.concatenate([sums.sums.reshape(-1), sums.counts])


def refute(noise_multiplier: float, epsilon: float, delta: float) -> bool:
    """Return whether the likelihood-ratio test tells a third record from two so well that (ε, δ)
    cannot be true, at confidence 1 − 1e-4, at any of 50 thresholds.
    """
    shift = exact_sums(3) - exact_sums(2)
    size = (RELEASES, len(shift))
    sigma = sigma_of(noise_multiplier)
    scores = []
    for records in (3, 2):
        noise = draw_discrete_gaussian(sigma, size[0] * size[1], Randomness(bytes([records])))
        released = exact_sums(records) + noise.reshape(size)
        scores.append(released.astype(float) @ shift)
    present, absent = scores
    confidence = 1e-4 / 50
    for threshold in np.quantile(absent, np.linspace(0.5, 0.9999, 50)):
        hits = int((present > threshold).sum())
        alarms = int((absent > threshold).sum())
        least = beta.ppf(confidence / 2, hits, RELEASES - hits + 1)
        most = beta.ppf(1 - confidence / 2, alarms + 1, RELEASES - alarms)
        if least > np.exp(epsilon) * most + delta:
            return True
    return False


def test_the_best_test_does_not_refute_epsilon() -> None:
    """100,000 releases with one record more and as many without: were the noise too small by a
    quarter, it would be seen.
    """
    epsilon, delta = 1.0, 1e-2
    noise_multiplier = noise_for(epsilon, delta, 1.0, 1)
    assert not refute(noise_multiplier, epsilon, delta)
    assert refute(0.75 * noise_multiplier, epsilon, delta)


def test_the_moments_of_a_whole_release() -> None:
    """1,000 releases of 352 features by two classes: noise of another size, or shared by two
    numbers, would be seen.
    """
    numbers = 352 * 2 + 2
    sigma = sigma_of(4.0)
    noise = draw_discrete_gaussian(sigma, 1000 * numbers, Randomness(b"whole"))
    values = noise.reshape(1000, numbers) / sigma
    assert abs(values.mean()) < 5 / 706_000**0.5
    assert abs((values**2).mean() - 1) < 5 * (2 / 706_000) ** 0.5
    assert abs((values**4).mean() - 3) < 5 * (96 / 706_000) ** 0.5
    # the largest eigenvalue of pure noise (Marchenko and Pastur 1967)
    spectrum = np.linalg.eigvalsh(values.T @ values / 1000)
    assert spectrum[-1] < 1.03 * (1 + (numbers / 1000) ** 0.5) ** 2
