"""ε where all data of a node is replaced by any other, for noise on a sum of clipped updates.

A replaced update moves the sum by up to twice the clipping norm, one that is left out by once. A
patient who leaves a hospital replaces its update.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fedgraft.common.privacy.accounting import Accountant, Bound, bound
from fedgraft.common.privacy.history import Row
from fedgraft.common.privacy.noise_search import noise_for

# ε is looked for in steps of at least so much, up to so much
STEP = 1e-4
MOST = 500.0


def replacement_bound(
    noise: float, rate: float, rounds: int, delta: float, accountant: Accountant
) -> Bound:
    """Return ε at this δ of rounds in which a node takes part by its own coin.

    Where it takes part in all of them, the two sums are twice the clipping norm apart. Else, by
    leaving out and putting in (group privacy, Dwork and Roth 2014, theorem 2.2): e and δ′ for
    leaving out make 2e and (1 + e^e) δ′.

    Args:
        noise: standard deviation over the clipping norm, of a round.
        rate: probability with which a node takes part in a round.
    """
    history = replacement_history(noise, rate, rounds)
    if rate == 1:
        return bound(history, delta, accountant)

    def leave_out(epsilon: float) -> Bound:
        return bound(history, delta / (1 + math.exp(epsilon)), accountant)

    counted = _least_fixed(leave_out)
    return Bound(2 * counted.epsilon, counted.accountant, counted.why)


def replacement_history(noise: float, rate: float, rounds: int) -> tuple[Row, ...]:
    """Return what is composed: where a node takes part in all rounds, of one that is replaced; else
    of one that is left out.
    """
    if rate == 1:
        return ((noise / 2, 1.0, rounds),)
    return ((noise, rate, rounds),)


def _least_fixed(leave_out: Callable[[float], Bound]) -> Bound:
    """Return a bound of ε ≤ the ε whose δ′ it was counted at: the smallest, but for a step."""
    epsilon = 0.0
    counted = leave_out(epsilon)
    while epsilon < counted.epsilon < MOST:
        epsilon = counted.epsilon + STEP
        counted = leave_out(epsilon)
    if counted.epsilon >= MOST:
        return Bound(math.inf, counted.accountant, f"ε is above {MOST:g}")
    return Bound(epsilon, counted.accountant, counted.why)


def noise_for_replacement(
    target: float, delta: float, rate: float, rounds: int, accountant: Accountant
) -> float:
    """Return the least noise, to about 0.1 %, with which ε of `replacement_bound` is within target.

    Raises:
        UserError: no noise is enough.
    """
    if rate == 1:
        return 2 * noise_for(target, delta, 1.0, rounds, accountant)
    half = target / 2 - STEP
    return noise_for(half, delta / (1 + math.exp(half)), rate, rounds, accountant)
