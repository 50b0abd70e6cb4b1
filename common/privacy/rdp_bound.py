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
# orders beside those that a search ends at, should last bits have led it astray
NEAR = 3


def bound_by_rdp(rows: tuple[Row, ...], delta: float, orders: tuple[float, ...] = ORDERS) -> float:
    """Return the least ε of all orders, r + log((α−1)/α) − log(δ α)/(α−1), with the rows' Rényi
    curves added up; infinite where a step had no noise.

    (α−1) times that is convex in α, since (α−1) r and (α−1) log(α−1) − α log α are; so ε falls
    along the orders and then rises, and a search finds the least without counting at each.
    """

    @functools.cache
    def count(at: int) -> float:
        order = orders[at]
        renyi = sum(steps * renyi_divergence(sigma, rate, order) for sigma, rate, steps in rows)
        # then TV ≤ √(1−e^−KL) < δ: (0, δ)-DP (Bretagnolle and Huber)
        if delta**2 + math.expm1(-renyi) > 0:
            return 0.0
        price = math.log(delta * order) / (order - 1)
        return max(renyi + math.log1p(-1 / order) - price, 0.0)

    # the divergence is least at the lowest order
    if not count(0):
        return 0.0
    least = 0
    most = len(orders) - 1
    in_stairs = any(sigma > MUCH_NOISE for sigma, _, _ in rows)
    while most - least > NEAR and not in_stairs:
        middle = (least + most) // 2
        if count(middle) <= count(middle + 1):
            most = middle
        else:
            least = middle
    places = range(len(orders))[max(least - NEAR, 0) : most + NEAR + 1]
    return min(map(count, places))


@functools.lru_cache(maxsize=65536)
def renyi_divergence(sigma: float, rate: float, order: float) -> float:
    """Return the Rényi divergence of one step at an order; infinite where it cannot be computed:
    still a bound.

    Under much noise the series for fractional orders takes minutes; the divergence never falls with
    the order, so the next whole order bounds it.
    """
    import numpy as np
    from opacus.accountants.analysis.rdp import compute_rdp

    if sigma > MUCH_NOISE:
        order = float(math.ceil(order))
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
