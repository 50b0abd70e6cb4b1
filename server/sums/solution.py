"""What a round of sums or of histograms comes to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedgraft.common.result import ClosedFormFacts
from fedgraft.common.statistics.predictive_variance import PredictiveVariance


@dataclass(frozen=True)
class Solution:
    """What was solved for.

    Attributes:
        adapter: tensors by name.
        facts: how a head was solved; None: none was.
        variance: how sure the head is, where the plan asks for it.
    """

    adapter: dict[str, Tensor]
    facts: ClosedFormFacts | None = None
    variance: PredictiveVariance | None = None
