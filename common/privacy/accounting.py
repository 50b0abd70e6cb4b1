"""ε of everything that happened: a whole history of noisy steps, composed by Opacus's accountants.

A history is rows (noise_multiplier, sample_rate, steps): that many steps of the Poisson-subsampled
Gaussian mechanism, each on a batch that every unit entered by its own coin with probability
sample_rate, with Gaussian noise of standard deviation noise_multiplier × clipping norm on the sum.
Rows may differ in everything; their order does not matter. Two histories count as neighbours if one
unit's data was added or removed.

Rényi DP ("rdp"): Mironov, "Rényi differential privacy" (CSF 2017), Prop. 1 for composition;
Mironov, Talwar and Zhang, "Rényi differential privacy of the sampled Gaussian mechanism" (2019),
§3.3 for one step; Balle et al., "Hypothesis testing interpretations and Rényi differential privacy"
(AISTATS 2020), Theorem 21 for ε. An upper bound, some 10 to 20 % above the truth. Privacy loss
distributions ("prv"): Gopi, Lee and Wutschitz, "Numerical composition of differential privacy"
(NeurIPS 2021); the upper end of its error bounds, about 0.01 above the truth.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedgraft.common.errors import UserError

Row = tuple[float, float, int]  # noise_multiplier, sample_rate, steps
Accountant = Literal["prv", "rdp"]
NEIGHBOURS = {  # what makes two data sets neighbours, by unit
    "example": "one example added or removed",
    "patient": "one patient added or removed",
    "node": "all data of one node replaced by any other",  # where the node itself adds the noise
}

# Rényi orders: the high ones serve small ε, the low ones large ε.
ORDERS: tuple[float, ...] = (
    1.05,
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *map(float, range(11, 64)),
    *(72.0, 80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 768.0, 1024.0),
)
PRV_ERROR = 0.01  # PRV's own error bound on ε
PRV_CELLS = 1 << 22  # more cells than these take seconds and hundreds of megabytes
PRV_ROWS = 64
NOISE_RANGE = (0.05, 1e6)  # where noise_for looks; more noise is counted as if it were the most
_MUCH_NOISE = 30.0
# Opacus stops its series at terms of 1e-13: at most this much of a moment's logarithm is lost
_LOST = 1e-12
_ROUNDING = 2.0**-52

log = logging.getLogger("fedgraft.accounting")


@dataclass(frozen=True)
class Bound:
    """An upper bound on ε, and which accountant's it is.

    Attributes:
        epsilon: ε ≥ 0; infinite where a step had no noise.
        accountant: whose bound it is. Where "prv" was asked for, "rdp" stands here if PRV could not
            count this history or RDP's bound, as valid, is the lower one.
        why: the reason, where it is not the accountant that was asked for; else empty.
    """

    epsilon: float
    accountant: Accountant
    why: str = ""


@dataclass(frozen=True)
class Spent:
    """What one run has spent at one node.

    Attributes:
        epsilon: upper bound on ε for neighbours as below.
        delta: the plan's δ.
        unit: "example", "patient" or "node".
        accountant: whose bound it is.
        history: the rows that were composed.
        neighbours: which two data sets can hardly be told apart, in words; default the unit's.
    """

    epsilon: float
    delta: float
    unit: str
    accountant: str
    history: tuple[Row, ...]
    neighbours: str = ""

    def to_json(self) -> dict[str, Any]:
        """As result.json has it."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "unit": self.unit,
            "neighbours": self.neighbours or NEIGHBOURS[self.unit],
            "accountant": self.accountant,
            "history": [list(row) for row in self.history],
        }


def epsilon(history: Iterable[Row], delta: float, accountant: Accountant = "prv") -> float:
    """Upper bound on ε of a whole history; see `bound`, which also tells which accountant's it
    is.
    """
    return bound(history, delta, accountant).epsilon


def bound(history: Iterable[Row], delta: float, accountant: Accountant = "prv") -> Bound:
    """Upper bound on ε of a whole history at this δ.

    Args:
        history: rows (noise_multiplier ≥ 0, sample_rate in [0, 1], steps ≥ 0).
        delta: δ, within (0, 1).
        accountant: "prv" or "rdp".

    Raises:
        UserError: a number out of its range.
    """
    if accountant not in ("prv", "rdp"):
        raise UserError(
            f"accountant {accountant!r}", where="privacy.accountant", remedy="write prv or rdp"
        )
    if not 0 < delta < 1:
        raise UserError(
            f"δ = {delta}", where="privacy.delta", remedy="write a number between 0 and 1: 1e-5"
        )
    return _bound(merged(history), delta, accountant)


def merged(history: Iterable[Row]) -> tuple[Row, ...]:
    """The same history with equal rows as one, rows that spend nothing left out, sorted. Raises
    `UserError`.
    """
    total: dict[tuple[float, float], int] = {}
    for noise_multiplier, sample_rate, steps in history:
        if not (
            noise_multiplier >= 0 and 0 <= sample_rate <= 1 and steps >= 0 and steps == int(steps)
        ):
            raise UserError(
                f"a row ({noise_multiplier}, {sample_rate}, {steps}) is no row of a history",
                remedy="noise multiplier ≥ 0, sample rate from 0 to 1, a whole number of steps ≥ 0",
            )
        if steps and sample_rate and noise_multiplier < math.inf:
            key = (float(noise_multiplier), float(sample_rate))
            total[key] = total.get(key, 0) + int(steps)
    return tuple((sigma, rate, steps) for (sigma, rate), steps in sorted(total.items()))


def noise_for(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: Accountant = "prv",
    earlier: Sequence[Row] = (),
) -> float:
    """The least noise multiplier, to about 0.1 %, with which `earlier` plus these steps stay within
    the target.

    The history with the returned value was itself counted and is ≤ target_epsilon.

    Raises:
        UserError: no noise is enough, since `earlier` alone has spent the target or nearly so.
    """
    if not target_epsilon > 0:
        raise UserError(
            f"target ε = {target_epsilon}",
            where="privacy.target_epsilon",
            remedy="write a number above 0",
        )
    before = merged(earlier)
    spent = epsilon(before, delta, accountant)
    least, most = NOISE_RANGE

    def count(sigma: float, by: Accountant) -> float:
        return epsilon((*before, (sigma, sample_rate, steps)), delta, by)

    if spent > target_epsilon or count(most, accountant) > target_epsilon:
        raise UserError(
            f"ε ≤ {target_epsilon:g} at δ = {delta:g} cannot be reached with any noise in {steps}"
            f" steps at sample rate {sample_rate:g}"
            + (f": {spent:.4g} was spent before" if spent else ""),
            where="privacy.target_epsilon",
            remedy="allow a larger ε or δ, or plan fewer steps",
        )
    # RDP is quick and never below PRV: it finds the range in which PRV then looks
    start = _root(lambda sigma: count(sigma, "rdp"), target_epsilon, least, most)
    if accountant == "prv":
        most, least = start or most, (start or most) * 0.9
        while least > NOISE_RANGE[0] and count(least, "prv") <= target_epsilon:
            most, least = least, max(least / 2, NOISE_RANGE[0])
        start = _root(lambda sigma: count(sigma, "prv"), target_epsilon, least, most)
    sigma = _rounded_up(start or most)
    while count(sigma, accountant) > target_epsilon:
        sigma = _rounded_up(sigma * 1.0005)
    return sigma


def statement(
    history: Iterable[Row],
    delta: float,
    *,
    unit: str,
    accountant: Accountant = "prv",
    found: Bound | None = None,
    neighbours: str = "",
) -> str:
    """One sentence that says what is protected, against what, and how it was counted.

    Args:
        unit: whose presence is hidden: "example", "patient" or "node".
        found: the bound, if it was counted already.
        neighbours: which two data sets can hardly be told apart, in words; default the unit's.
    """
    rows = merged(history)
    found = found or bound(rows, delta, accountant)
    sampled = {rate < 1 for _, rate, _ in rows}
    how = {
        frozenset(): "nothing was run",
        frozenset({True}): "Poisson sampling",
        frozenset({False}): "no sampling (every unit in every step)",
    }.get(frozenset(sampled), "Poisson sampling where there was sampling")
    name = {"prv": "PRV accountant, upper bound", "rdp": "RDP accountant"}[found.accountant]
    return (
        f"ε ≤ {shown(found.epsilon)} at δ = {delta:g} for {neighbours or NEIGHBOURS[unit]}; {how}; "
        f"{sum(steps for _, _, steps in rows)} steps composed by the {name}"
        + (f" ({found.why})" if found.why else "")
        + "."
    )


def shown(epsilon: float) -> str:
    """ε with four decimals, rounded up: what is printed stays an upper bound."""
    return f"{math.ceil(epsilon * 1e4 - 1e-9) / 1e4:.4f}" if math.isfinite(epsilon) else "∞"


@functools.lru_cache(maxsize=4096)
def _bound(rows: tuple[Row, ...], delta: float, accountant: Accountant) -> Bound:
    if not rows:
        return Bound(0.0, accountant)
    rows = merged((min(sigma, NOISE_RANGE[1]), rate, steps) for sigma, rate, steps in rows)
    by_rdp = _by_rdp(rows, delta)
    if accountant == "rdp" or by_rdp == math.inf:
        return Bound(by_rdp, accountant)
    by_prv, why = (math.inf, "") if by_rdp <= PRV_ERROR else _by_prv(rows, delta)
    if by_prv < by_rdp:
        return Bound(by_prv, "prv")
    why = why or "lower here than PRV with its error bound"
    log.info("ε counted by RDP: %s", why)
    return Bound(by_rdp, "rdp", why)


def _by_rdp(rows: tuple[Row, ...], delta: float, orders: tuple[float, ...] = ORDERS) -> float:
    """Rényi curves added up, and the best order's ε: r + log((α−1)/α) − log(δ α)/(α−1)."""
    best = math.inf
    curves = [(_curve(sigma, rate, orders), steps) for sigma, rate, steps in rows]
    for at, order in enumerate(orders):
        renyi = sum(steps * curve[at] for curve, steps in curves)
        if (
            delta**2 + math.expm1(-renyi) > 0
        ):  # then TV ≤ √(1−e^−KL) < δ: (0, δ)-DP (Bretagnolle and Huber)
            return 0.0
        best = min(best, renyi + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
    return max(best, 0.0) if not math.isnan(best) else math.inf


@functools.lru_cache(maxsize=4096)
def _curve(sigma: float, rate: float, orders: tuple[float, ...]) -> tuple[float, ...]:
    """Rényi divergence of one step at each order. An order that cannot be computed is ∞: still a
    bound.

    Under much noise the series for fractional orders takes minutes; the divergence never falls with
    the order, so the next whole order bounds it.
    """
    import numpy as np
    from opacus.accountants.analysis.rdp import compute_rdp

    @functools.cache
    def at(order: float) -> float:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = float(
                    np.asarray(
                        compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=[order])
                    )[0]
                )
        except (ArithmeticError, ValueError):
            return math.inf
        return math.inf if math.isnan(found) else max(found, 0.0) + _LOST / (order - 1)

    return tuple(at(float(math.ceil(order)) if sigma > _MUCH_NOISE else order) for order in orders)


def _by_prv(rows: tuple[Row, ...], delta: float) -> tuple[float, str]:
    """PRV's upper end, or ∞ and why it cannot be had."""
    if len(rows) > PRV_ROWS:
        return math.inf, f"PRV takes too long for more than {PRV_ROWS} different steps"
    # ── the grid: how far it must reach (Gopi et al., remark 5.6) and how fine it must be (theorem
    steps = sum(count for _, _, count in rows)
    slack = delta / 1000  # of δ, given to truncation
    reach = 3 + max(
        PRV_ERROR,
        _by_rdp(rows, slack / 4),
        *(_by_rdp(((sigma, rate, 1),), slack / (8 * steps)) for sigma, rate, _ in rows),
    )
    mesh = PRV_ERROR / math.sqrt(steps * math.log(12 / slack) / 2)
    if not 2 * reach / mesh <= PRV_CELLS:
        return math.inf, "PRV would need too fine a grid"
    if 2 * reach / mesh * _ROUNDING > delta / 10:
        return math.inf, "δ is so small that rounding would drown PRV"

    # ── the privacy losses on it, composed ──
    import numpy as np
    from opacus.accountants.analysis import prv

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            grid = prv.Domain.create_aligned(-reach, reach, mesh)
            losses = [
                prv.discretize(
                    prv.TruncatedPrivacyRandomVariable(
                        prv.PoissonSubsampledGaussianPRV(rate, sigma), grid.t_min, grid.t_max
                    ),
                    grid,
                )
                for sigma, rate, _ in rows
            ]
            whole = prv.compose_heterogeneous(losses, [count for _, _, count in rows])
            upper = float(whole.compute_epsilon(delta, slack, PRV_ERROR)[2])
    except (ArithmeticError, ValueError, RuntimeError, IndexError, MemoryError) as error:
        return math.inf, f"PRV failed: {error}"
    if not 0 <= upper < math.inf:
        return math.inf, "PRV found no ε"
    return upper, ""


def _root(
    count: Callable[[float], float], target: float, least: float, most: float
) -> float | None:
    """σ in [least, most] where count(σ) crosses the target; None if it is below it all along."""
    from scipy.optimize import brentq

    def off(log_sigma: float) -> float:
        return math.log(min(max(count(math.exp(log_sigma)), 1e-12), 1e12) / target)

    low, high = math.log(least), math.log(most)
    if off(low) <= 0:
        return least
    if off(high) > 0:
        return None
    return math.exp(float(brentq(off, low, high, xtol=5e-4, rtol=1e-12)))  # type: ignore[arg-type]


def _rounded_up(value: float) -> float:
    """With five significant digits, upwards: a number that a person can copy."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 4)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.5g}")
