"""Discrete Gaussian noise on integers, sampled exactly: no float is drawn, none can leak.

Floating-point noise betrays what it was added to by its last bits (Mironov 2012); integers with
discrete Gaussian noise do not. Its Rényi divergences are at most those of the continuous Gaussian
of the same σ (Canonne, Kamath and Steinke 2020, proposition 5), so Rényi accounting holds as it is.
And a little more of it hides as much as the continuous one, whatever it is composed with:
`is_covered` says how much more.

The sampler is Karney 2016, algorithm D, for a whole σ and mean 0, many at a time; every coin that
it tosses has a rational probability and is tossed with whole random numbers.
"""

from __future__ import annotations

import math

import numpy as np

from fedgraft.common.privacy.randomness import Randomness

# products of σ and small numbers stay within 63 bits
LARGEST_SIGMA = 2**40


def draw_discrete_gaussian(sigma: int, count: int, randomness: Randomness) -> np.ndarray:
    """Return `(count,)` integers x with probability proportional to exp(−x² / 2σ²), int64.

    Raises:
        ValueError: σ is below 1 or above 2^40.
    """
    if not 1 <= sigma <= LARGEST_SIGMA:
        raise ValueError(f"σ = {sigma}; it must be from 1 to 2^40")
    values = np.zeros(count, np.int64)
    pending = np.arange(count)
    while len(pending):
        drawn, accepted = _try(sigma, len(pending), randomness)
        values[pending[accepted]] = drawn[accepted]
        pending = pending[~accepted]
    return values


def _try(sigma: int, count: int, randomness: Randomness) -> tuple[np.ndarray, np.ndarray]:
    """Return candidates, and which of them are accepted (steps D1 to D7)."""
    # D1, D2: k is the whole part of |x| / σ
    multiple = _count_successes(count, randomness)
    accepted = _all_succeed(multiple * (multiple - 1), randomness)
    # D3: the sign
    negative = randomness.integers(np.full(count, 2)) == 1
    # D4: the rest of |x|, below σ
    rest = randomness.integers(np.full(count, sigma))
    # D5: there is one zero, not two
    accepted &= ~((multiple == 0) & (rest == 0) & negative)
    # D6: exp(−x (2k + x) / 2) with x = rest / σ, as k + 1 equal factors
    for time in range(int(multiple.max(initial=0)) + 1):
        asked = accepted & (multiple >= time)
        accepted[asked] = _accept_rest(multiple[asked], rest[asked], sigma, randomness)
    size = multiple * sigma + rest
    return np.where(negative, -size, size), accepted


def _accept_rest(
    multiple: np.ndarray, rest: np.ndarray, sigma: int, randomness: Randomness
) -> np.ndarray:
    """Return coins that fall with probability exp(−x (2k + x) / (2k + 2)) each.

    By von Neumann's alternating series: toss γ/1, γ/2, γ/3, … until one fails; the number of the
    first that failed is odd with probability exp(−γ).
    """
    count = len(rest)
    odd = np.ones(count, bool)
    going = np.arange(count)
    number = 1
    while len(going):
        k = multiple[going]
        x = rest[going]
        tossed = randomness.integers(np.full(len(going), sigma)) < x
        tossed &= randomness.integers((2 * k + 2) * sigma) < 2 * k * sigma + x
        tossed &= randomness.integers(np.full(len(going), number)) == 0
        going = going[tossed]
        odd[going] = ~odd[going]
        number += 1
    return odd


def _half(count: int, randomness: Randomness) -> np.ndarray:
    """Return coins that fall with probability exp(−1/2) each, by the same series."""
    odd = np.ones(count, bool)
    going = np.arange(count)
    number = 1
    while len(going):
        going = going[randomness.integers(np.full(len(going), 2 * number)) == 0]
        odd[going] = ~odd[going]
        number += 1
    return odd


def _count_successes(count: int, randomness: Randomness) -> np.ndarray:
    """Return how often such a coin falls before it first does not, int64 `(count,)`."""
    successes = np.zeros(count, np.int64)
    going = np.arange(count)
    while len(going):
        going = going[_half(len(going), randomness)]
        successes[going] += 1
    return successes


def _all_succeed(tosses: np.ndarray, randomness: Randomness) -> np.ndarray:
    """Return whether all of so many tosses of such a coin fall."""
    succeeded = np.ones(len(tosses), bool)
    for number in range(int(tosses.max(initial=0))):
        asked = np.flatnonzero(succeeded & (tosses > number))
        succeeded[asked] = _half(len(asked), randomness)
    return succeeded


# probability of the noise for which nothing is claimed: e^−64, which δ may grow by
TAIL = 64.0


def is_covered(noise_multiplier: float, sensitivity: float, count: int, slack: float) -> bool:
    """Return whether discrete noise on `count` integers, of σ' = (1 + slack) · noise_multiplier ·
    sensitivity, hides as much as continuous noise without the slack: at every ε, up to e^−64 of δ.

    Rounding continuous noise to integers gives nothing away. With u uniform in ±1/2 the
    probability of x is then that of discrete noise times E exp(−(2xu + u²) / 2σ'²), whose logarithm
    lies between −1/24σ'² (Jensen) and x²/24σ'⁴ (sinh(a/2) / (a/2) ≤ exp(a²/24)). Outside an event
    of e^−64 the squares of all n integers add up to at most σ'² (n + 16√n + 128) (Laurent and
    Massart 2000, lemma 1), so the logarithm of the ratio of both moves within
    w = (2n + 16√n + 128) / 24σ'².

    Hence δ(ε) of discrete noise is at most e^w times that of the continuous one at ε − w. With
    μ = 1 / noise multiplier, x = μ/2 − ε/μ, φ and Φ those of the normal distribution and
    R(t) = Φ(−t) / φ(t), the continuous one has δ = φ(x) (R(−x) − R(μ − x)),
    ∂δ/∂ε = −φ(x) R(μ − x) and ∂δ/∂ log μ = μ φ(x): for ε ≥ 0 the slack pays where
    w R(−x) ≤ slack · μ, and R(−x) is at most R(−μ/2). Half of that is allowed here, for what
    changes along the way. Negative ε follow, as δ(−ε) = 1 − exp(−ε) + exp(−ε) δ(ε). What holds at
    every ε holds in any composition (Zhu, Dong and Wang 2022, on dominating pairs).
    """
    mu = 1 / noise_multiplier
    deviation = (1 + slack) * noise_multiplier * sensitivity
    width = (2 * count + 2 * math.sqrt(TAIL * count) + 2 * TAIL) / (24 * deviation**2)
    # Φ(μ/2) / φ(μ/2)
    mills = math.sqrt(math.pi / 2) * math.exp(mu**2 / 8) * math.erfc(-mu / math.sqrt(8))
    return 2 * width * mills <= slack * mu
