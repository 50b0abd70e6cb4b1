"""ε of everything that happened: a whole history of noisy steps, composed by Opacus's accountants.

Two histories count as neighbours if one unit's data was added or removed. By Rényi differential
privacy ("rdp", `rdp_bound.py`) or by privacy loss distributions ("prv", `prv_bound.py`).
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from fedgraft.common.errors import UserError
from fedgraft.common.privacy.history import Row, merge_rows
from fedgraft.common.privacy.prv_bound import PRV_ERROR, Uncountable, bound_by_prv
from fedgraft.common.privacy.rdp_bound import bound_by_rdp

Accountant = Literal["prv", "rdp"]
# what makes two data sets neighbours, by unit; a node itself adds the noise that hides it
NEIGHBOURS = {
    "example": "one example added or removed",
    "patient": "one patient added or removed",
    "node": "all data of one node replaced by any other",
}
NAMES = {"prv": "PRV accountant, upper bound", "rdp": "RDP accountant"}
# where noise is looked for; more noise is counted as if it were the most
NOISE_RANGE = (0.05, 1e6)

log = logging.getLogger("fedgraft.accounting")


@dataclass(frozen=True)
class Bound:
    """An upper bound on ε, and which accountant's it is.

        bound([(1.1, 0.01, 1000)], delta=1e-5).epsilon

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

        Spent(1.2, 1e-5, "patient", "prv", history=((1.1, 0.01, 1000),)).to_json()

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
        """Return what result.json has of it."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "unit": self.unit,
            "neighbours": self.neighbours or NEIGHBOURS[self.unit],
            "accountant": self.accountant,
            "history": list(map(list, self.history)),
        }


def epsilon(history: Iterable[Row], delta: float, accountant: Accountant = "prv") -> float:
    """Return an upper bound on ε of a whole history; see `bound`, which also tells which
    accountant's it is.
    """
    return bound(history, delta, accountant).epsilon


def bound(history: Iterable[Row], delta: float, accountant: Accountant = "prv") -> Bound:
    """Return an upper bound on ε of a whole history at this δ.

    Args:
        history: rows (noise_multiplier ≥ 0, sample_rate in [0, 1], steps ≥ 0).
        delta: δ, within (0, 1).
        accountant: "prv" or "rdp".

    Raises:
        UserError: a number out of its range.
    """
    if accountant not in NAMES:
        what = f"accountant {accountant!r}"
        raise UserError(what, where="privacy.accountant", remedy="write prv or rdp")
    if not 0 < delta < 1:
        remedy = "write a number between 0 and 1: 1e-5"
        raise UserError(f"δ = {delta}", where="privacy.delta", remedy=remedy)
    return _bound(merge_rows(history), delta, accountant)


@functools.lru_cache(maxsize=4096)
def _bound(rows: tuple[Row, ...], delta: float, accountant: Accountant) -> Bound:
    if not rows:
        return Bound(0.0, accountant)
    rows = merge_rows(_limit_noise(row) for row in rows)
    by_rdp = bound_by_rdp(rows, delta)
    if accountant == "rdp" or by_rdp == math.inf:
        return Bound(by_rdp, accountant)
    why = "lower here than PRV with its error bound"
    if by_rdp > PRV_ERROR:
        try:
            by_prv = bound_by_prv(rows, delta)
            if by_prv < by_rdp:
                return Bound(by_prv, "prv")
        except Uncountable as reason:
            why = str(reason)
    log.info("ε counted by RDP: %s", why)
    return Bound(by_rdp, "rdp", why)


def _limit_noise(row: Row) -> Row:
    sigma, rate, steps = row
    return min(sigma, NOISE_RANGE[1]), rate, steps


# ── words for people ──────────────────────────────────────────────────────────────────────────────
def statement(
    history: Iterable[Row],
    delta: float,
    *,
    unit: str,
    accountant: Accountant = "prv",
    counted: Bound | None = None,
    neighbours: str = "",
) -> str:
    """Return one sentence that says what is protected, against what, and how it was counted.

    Args:
        unit: whose presence is hidden: "example", "patient" or "node".
        counted: the bound, if it was counted already.
        neighbours: which two data sets can hardly be told apart, in words; default the unit's.
    """
    rows = merge_rows(history)
    if counted is None:
        counted = bound(rows, delta, accountant)
    protection = f"ε ≤ {shown(counted.epsilon)} at δ = {delta:g}"
    against = neighbours or NEIGHBOURS[unit]
    steps = sum(count for _, _, count in rows)
    composed = f"{steps} steps composed by the {NAMES[counted.accountant]}"
    if steps == 1:
        composed = f"one release, counted by the {NAMES[counted.accountant]}"
    if counted.why:
        composed += f" ({counted.why})"
    return f"{protection} for {against}; {_describe_sampling(rows)}; {composed}."


def _describe_sampling(rows: tuple[Row, ...]) -> str:
    sampled = {rate < 1 for _, rate, _ in rows}
    if not sampled:
        return "nothing was run"
    if sampled == {True}:
        return "Poisson sampling"
    if sampled == {False}:
        return "no sampling (every unit is in every release)"
    return "Poisson sampling where there was sampling"


def shown(epsilon: float) -> str:
    """Return ε with four decimals, rounded up: what is printed stays an upper bound."""
    if not math.isfinite(epsilon):
        return "∞"
    units = math.ceil(epsilon * 1e4 - 1e-9)
    return f"{units / 1e4:.4f}"
