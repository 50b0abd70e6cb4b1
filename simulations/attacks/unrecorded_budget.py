"""A node's budget without its ledger: nobody but the attacker sees what is trained here, so nothing
is spent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgraft.client.data.split import Split
from fedgraft.client.node.node_file import Node
from fedgraft.client.privacy.budget import Budget
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.simulations.engines.simulated_node import open_seeded_budget


@dataclass(frozen=True)
class UnrecordedBudget:
    """The mechanism and the noise that a simulation's node has; its ledger is left alone.

        budget = UnrecordedBudget.open(node, plan, train)
        replace(task, budget=budget)

    Attributes:
        recorded: the budget that the node itself has.
    """

    recorded: Budget

    @classmethod
    def open(cls, node: Node, plan: Agreement, train: Split) -> UnrecordedBudget:
        """Return the budget over the records that a split has. Raise as `Budget.open`."""
        return cls(open_seeded_budget(node, plan, train))

    @property
    def patients(self) -> Sequence[np.ndarray] | None:
        """Positions of each patient's examples, where the unit is the patient."""
        return self.recorded.patients

    def mechanism(self, plan: Agreement, round_: int = 1) -> Mechanism:
        """Return the noisy steps of the node's round. Raise as `Budget.mechanism`."""
        return self.recorded.mechanism(plan, round_)

    @contextmanager
    def spending(self, plan: Agreement, round_: int) -> Iterator[Mechanism]:
        """Yield the mechanism that the node would run."""
        yield self.mechanism(plan, round_)

    def spent(self, plan: Agreement) -> Spent:
        """Return that nothing was."""
        privacy = plan.privacy
        delta = privacy.delta or 0.0
        return Spent(0.0, delta, privacy.unit, privacy.accountant, ())

    def randomness(self, plan: Agreement, round_: int, purpose: str = "noise") -> Randomness:
        """Return the noise of the node's round, as the simulation had it."""
        return self.recorded.randomness(plan, round_, purpose)

    def noised_metrics(self, plan: Agreement, round_: int, sums: Any, purpose: str) -> None:
        """Return None: an attacker needs no metrics."""
