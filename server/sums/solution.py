"""What a round of sums or of histograms comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedgraft.common.errors import RunFailed
from fedgraft.common.result import ClosedFormFacts
from fedgraft.common.statistics.predictive_variance import PredictiveVariance
from fedgraft.common.wire.layout import LARGEST, BadUpdate, check_believable


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


def check_head(head: Mapping[str, Tensor]) -> None:
    """Raise `RunFailed` for a solved head that no node would take: the run would end without a
    single figure.
    """
    for tensor in head.values():
        try:
            check_believable(tensor)
        except BadUpdate as error:
            raise RunFailed(
                f"the head that the sums give has {error}, and no node takes it\n"
                "  → the features are far too small for it: a network whose outputs hardly differ"
                " (random values, inputs on another scale than it was trained with), or one more"
                f" layer is needed that brings them to order 1; heads hold at most {LARGEST:g}"
            ) from None
