"""The least noise with which a whole history stays within a target ε."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fedgraft.common.errors import UserError
from fedgraft.common.privacy.accounting import NOISE_RANGE, Accountant, epsilon
from fedgraft.common.privacy.history import Row, merge_rows

KEY = "privacy.target_epsilon"


def noise_for(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: Accountant = "prv",
    earlier: Sequence[Row] = (),
) -> float:
    """Return the least noise multiplier, to about 0.1 %, with which `earlier` plus these steps stay
    within the target.

    The history with the returned value was itself counted and is ≤ target_epsilon.

    Raises:
        UserError: no noise is enough, since `earlier` alone has spent the target or nearly so.
    """
    if not target_epsilon > 0:
        what = f"target ε = {target_epsilon}"
        raise UserError(what, where=KEY, remedy="write a number above 0")
    before = merge_rows(earlier)
    spent = epsilon(before, delta, accountant)
    least, most = NOISE_RANGE

    def count(sigma: float, by: Accountant) -> float:
        return epsilon((*before, (sigma, sample_rate, steps)), delta, by)

    if spent > target_epsilon or count(most, accountant) > target_epsilon:
        what = (
            f"ε ≤ {target_epsilon:g} at δ = {delta:g} cannot be reached with any noise in {steps}"
            f" steps at sample rate {sample_rate:g}"
        )
        if spent:
            what += f": {spent:.4g} was spent before"
        raise UserError(what, where=KEY, remedy="allow a larger ε or δ, or plan fewer steps")

    # RDP is quick and never below PRV: it finds the range in which PRV then looks
    start = _find_root(lambda sigma: count(sigma, "rdp"), target_epsilon, (least, most))
    if accountant == "prv":
        most = start or most
        below = most * 0.9
        while below > least and count(below, "prv") <= target_epsilon:
            most = below
            below = max(below / 2, least)
        start = _find_root(lambda sigma: count(sigma, "prv"), target_epsilon, (below, most))
    sigma = _round_up(start or most)
    while count(sigma, accountant) > target_epsilon:
        sigma = _round_up(sigma * 1.0005)
    return sigma


def _find_root(
    count: Callable[[float], float], target: float, noise_range: tuple[float, float]
) -> float | None:
    """Return σ in the range where count(σ) crosses the target; the least where it is below all
    along, None where it is above.
    """
    from scipy.optimize import brentq

    def distance(log_sigma: float) -> float:
        counted = count(math.exp(log_sigma))
        return math.log(min(max(counted, 1e-12), 1e12) / target)

    least, most = noise_range
    low = math.log(least)
    high = math.log(most)
    if distance(low) <= 0:
        return least
    if distance(high) > 0:
        return None
    root: Any = brentq(distance, low, high, xtol=5e-4, rtol=1e-12)  # type: ignore[arg-type]
    return math.exp(float(root))


def _round_up(value: float) -> float:
    """Return a number with five significant digits, upwards, that a person can copy."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 4)
    units = math.ceil(value / unit - 1e-9)
    return float(f"{units * unit:.5g}")
