"""What a release spends of a hospital's privacy budget, and the most that may be spent."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedgraft.client.privacy.ledger_holds import HeldRounds
from fedgraft.common.errors import UserError
from fedgraft.common.privacy.accounting import Accountant
from fedgraft.common.privacy.history import Row


@dataclass(frozen=True)
class Ceilings:
    """The most that may be spent: ε of one plan at the plan's δ, ε of everything at this δ.

        Ceilings(total=8.0, delta=1e-5)

    None is no ceiling.
    """

    run: float | None = None
    total: float | None = None
    delta: float | None = None


NO_CEILINGS = Ceilings()


@dataclass(frozen=True)
class Spending:
    """Noisy steps that one round of a plan wants to take on a data set.

        Spending("example", plan=agreement_hash(plan), round=3, row=(1.1, 0.02, 50), delta=1e-5)

    Attributes:
        unit: whose presence is hidden: "example", "patient" or "node".
        plan: the plan's hash.
        round: from 1.
        row: noise multiplier, sample rate, steps.
        delta: the plan's δ.
        accountant: who counts; where RDP's bound is within the ceilings, which is quick, PRV is
            not asked.
        purpose: what the noise protects, where one round releases several things.
        trusted: code that is no part of fedgraft and ran on the records: name and hash, for the
            statement.
    """

    unit: str
    plan: str
    round: int
    row: Row
    delta: float
    accountant: Accountant = "prv"
    purpose: str = "training"
    trusted: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise `UserError` for steps that no ledger can count."""
        noise_multiplier, _, steps = self.row
        if steps >= 1 and math.isfinite(noise_multiplier):
            return
        what = f"a reservation of {steps} steps with noise multiplier {noise_multiplier}"
        raise UserError(what, remedy="reserve one step at least, with finite noise")


@dataclass(frozen=True)
class WholeRun:
    """All that a plan would release on a data set, before it begins.

        WholeRun("example", agreement_hash(plan), held=(HeldRounds(…),), delta=1e-5)

    Attributes:
        unit, plan, delta, accountant: as of a `Spending`.
        held: its rounds, by what they release.
    """

    unit: str
    plan: str
    held: tuple[HeldRounds, ...]
    delta: float
    accountant: Accountant = "prv"
