"""One node's sums, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedgraft.common.privacy.accounting import Spent


@dataclass(frozen=True)
class Counted:
    """One node's sums that may be added.

    Attributes:
        sums: they add up by `+`.
        records: behind them; 1 under differential privacy, where nobody is told.
        seconds: that they took at the node.
        spent: of its privacy budget.
    """

    sums: Any
    records: int
    seconds: float
    spent: Spent | None = None
