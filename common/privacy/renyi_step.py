"""The Rényi divergence of one step of the Poisson-subsampled Gaussian mechanism.

Mironov, Talwar and Zhang, "Rényi differential privacy of the sampled Gaussian mechanism" (2019),
§3.3: A_α, of whole orders a sum and of others two series, in logarithms. The bits are those of
Opacus's `compute_rdp`, whose order of operations this keeps; it asks SciPy for many terms at once,
which takes half of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

# terms that SciPy is asked for at once
AT_ONCE = 32
# a series ends at terms of e to this
LEAST_TERM = -30.0
NOTHING = -math.inf


def divergence_of_step(sigma: float, rate: float, order: float) -> float:
    """Return the Rényi divergence of one step at an order above 1.

    Args:
        sigma: noise multiplier, ≥ 0.
        rate: each unit's probability to enter, 0 to 1.

    Raises:
        ValueError, ArithmeticError: it cannot be computed in these numbers.
    """
    if rate == 0:
        return 0.0
    if sigma == 0:
        return math.inf
    if rate == 1:
        return order / (2 * sigma**2)
    if order.is_integer():
        return _sum_terms(sigma, rate, int(order)) / (order - 1)
    return _sum_series(sigma, rate, order) / (order - 1)


def _sum_terms(sigma: float, rate: float, order: int) -> float:
    """Return log A_α = log Σ C(α, k) (1 − q)^(α−k) q^k exp((k² − k) / 2σ²) of a whole order."""
    from scipy import special

    total = NOTHING
    counts = special.binom(order, np.arange(order + 1)).tolist()
    log_in = math.log(rate)
    log_out = math.log(1 - rate)
    for k, count in enumerate(counts):
        weight = math.log(count) + k * log_in + (order - k) * log_out
        total = _log_add(total, weight + (k * k - k) / (2 * sigma**2))
    return total


def _sum_series(sigma: float, rate: float, order: float) -> float:
    """Return log A_α of an order that is not whole: the integrals up to z₀ and from z₀ on."""
    below = NOTHING
    above = NOTHING
    for is_added, log_below, log_above in _list_terms(sigma, rate, order):
        combine = _log_add if is_added else _log_subtract
        below = combine(below, log_below)
        above = combine(above, log_above)
        if max(log_below, log_above) < LEAST_TERM:
            break
    return _log_add(below, above)


def _list_terms(sigma: float, rate: float, order: float) -> Iterator[tuple[bool, float, float]]:
    """Yield whether a term is added, and the logarithms of its size in both series."""
    from scipy import special

    z0 = sigma**2 * math.log(1 / rate - 1) + 0.5
    width = math.sqrt(2) * sigma
    log_in = math.log(rate)
    log_out = math.log(1 - rate)
    log_half = math.log(0.5)
    log_two = math.log(2)
    first = 0
    while True:
        i_of = np.arange(first, first + AT_ONCE)
        coefficients = special.binom(order, i_of).tolist()
        # log erfc(x) = log 2 + log Φ(−√2 x)
        tails_below = special.log_ndtr(-((i_of - z0) / width) * 2**0.5).tolist()
        tails_above = special.log_ndtr(-((z0 - (order - i_of)) / width) * 2**0.5).tolist()
        for i in range(first, first + AT_ONCE):
            coefficient = coefficients[i - first]
            size = math.log(abs(coefficient))
            j = order - i
            weight_below = size + i * log_in + j * log_out
            weight_above = size + j * log_in + i * log_out
            tail_below = log_half + (log_two + tails_below[i - first])
            tail_above = log_half + (log_two + tails_above[i - first])
            log_below = weight_below + (i * i - i) / (2 * (sigma**2)) + tail_below
            log_above = weight_above + (j * j - j) / (2 * (sigma**2)) + tail_above
            yield coefficient > 0, log_below, log_above
        first += AT_ONCE


def _log_add(a: float, b: float) -> float:
    """Return log(e^a + e^b)."""
    low = min(a, b)
    high = max(a, b)
    if low == NOTHING:
        return high
    return math.log1p(math.exp(low - high)) + high


def _log_subtract(a: float, b: float) -> float:
    """Return log(e^a − e^b). Raise ValueError where that is below 0."""
    if a < b:
        raise ValueError("a logarithm of less than nothing")
    if b == NOTHING:
        return a
    if a == b:
        return NOTHING
    try:
        return math.log(math.expm1(a - b)) + b
    except OverflowError:
        return a
