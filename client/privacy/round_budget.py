"""What a round asks of a privacy budget, whoever keeps the account."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.privacy.randomness import Randomness


class RoundBudget(Protocol):
    """What stands between a round and a node's data.

        with budget.spending(plan, 3) as mechanism:
            train_privately(…, budget.randomness(plan, 3))
        budget.spent(plan).epsilon

    `client/privacy/budget.py` is the one that a node has, with its ledger.
    """

    @property
    def patients(self) -> Sequence[np.ndarray] | None:
        """Positions of each patient's examples, where the unit is the patient."""
        ...

    def spending(self, plan: Agreement, round_: int) -> AbstractContextManager[Mechanism]:
        """Reserve a round's steps, run the body, settle. Raises `Refused` before the body."""
        ...

    def spent(self, plan: Agreement) -> Spent:
        """Return what the plan has spent so far."""
        ...

    def randomness(self, plan: Agreement, round_: int, purpose: str = "noise") -> Randomness:
        """Return the randomness of one round's noise."""
        ...

    def noised_metrics(self, plan: Agreement, round_: int, sums: Any, purpose: str) -> Any:
        """Return what may be told of a round's metrics; None: nothing."""
        ...
