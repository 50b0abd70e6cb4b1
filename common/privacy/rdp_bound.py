"""ε by Rényi differential privacy: an upper bound, some 10 to 20 % above the truth.

Mironov, "Rényi differential privacy" (CSF 2017), Prop. 1 for composition; Mironov, Talwar and
Zhang, "Rényi differential privacy of the sampled Gaussian mechanism" (2019), §3.3 for one step, by
Opacus; Balle et al., "Hypothesis testing interpretations and Rényi differential privacy" (AISTATS
2020), Theorem 21 for ε.
"""

from __future__ import annotations

import functools
import math
import warnings

from fedgraft.common.privacy.history import Row

# Rényi orders: the high ones serve small ε, the low ones large ε.
ORDERS: tuple[float, ...] = (
    1.05,
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *map(float, range(11, 64)),
    *(72.0, 80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 768.0, 1024.0),
)
# above this noise multiplier, whole orders alone
MUCH_NOISE = 30.0
# Opacus stops its series at terms of 1e-13: at most this much of a moment's logarithm is lost
LOST = 1e-12


def bound_by_rdp(rows: tuple[Row, ...], delta: float, orders: tuple[float, ...] = ORDERS) -> float:
    """Return the least ε of all orders, r + log((α−1)/α) − log(δ α)/(α−1), with the rows' Rényi
    curves added up; infinite where a step had no noise.
    """
    curves = [(renyi_curve(sigma, rate, orders), steps) for sigma, rate, steps in rows]
    best = math.inf
    for at, order in enumerate(orders):
        renyi = sum(steps * curve[at] for curve, steps in curves)
        # then TV ≤ √(1−e^−KL) < δ: (0, δ)-DP (Bretagnolle and Huber)
        if delta**2 + math.expm1(-renyi) > 0:
            return 0.0
        price = math.log(delta * order) / (order - 1)
        best = min(best, renyi + math.log1p(-1 / order) - price)
    if math.isnan(best):
        return math.inf
    return max(best, 0.0)


@functools.lru_cache(maxsize=4096)
def renyi_curve(sigma: float, rate: float, orders: tuple[float, ...]) -> tuple[float, ...]:
    """Return the Rényi divergence of one step at each order.

    Under much noise the series for fractional orders takes minutes; the divergence never falls with
    the order, so the next whole order bounds it.
    """
    known: dict[float, float] = {}
    curve: list[float] = []
    for order in orders:
        if sigma > MUCH_NOISE:
            order = float(math.ceil(order))
        if order not in known:
            known[order] = _divergence(sigma, rate, order)
        curve.append(known[order])
    return tuple(curve)


def _divergence(sigma: float, rate: float, order: float) -> float:
    """Return the divergence of one step; infinite where it cannot be computed: still a bound."""
    import numpy as np
    from opacus.accountants.analysis.rdp import compute_rdp

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            computed = compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=[order])
            divergence = float(np.asarray(computed)[0])
    except (ArithmeticError, ValueError):
        return math.inf
    if math.isnan(divergence):
        return math.inf
    return max(divergence, 0.0) + LOST / (order - 1)
