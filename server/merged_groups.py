"""Metrics of groups of people over all nodes: each node's sums by column and group, merged as those
of everybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from fedgraft.common.plan.plan import Plan
from fedgraft.common.tasks.classification_sums import Groups, Sums


class MergedGroups:
    """What nodes told of the groups that a plan names."""

    def __init__(self, plan: Plan) -> None:
        self.columns = plan.evaluate.subgroups if plan.privacy.mode == "none" else ()
        self.sums: Groups = {}
        self.nodes: Counter[tuple[int, int]] = Counter()

    @property
    def sizes(self) -> list[int]:
        """How many groups each column has; empty where none may be told of."""
        return [len(column.groups) for column in self.columns]

    def add(self, told: Groups) -> None:
        """What one node told; it was checked."""
        for at, sums in told.items():
            self.sums[at] = self.sums[at] + sums if at in self.sums else sums
            self.nodes[at] += 1

    def told(self, metrics: Callable[[Sums], dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """`final.subgroups`: by column and group its metrics, and the number of nodes that told of
        it.

        A group that no node told of is not in it: no records, too few at each node, or not allowed.
        """
        return {
            column.column: {
                name: metrics(self.sums[number, group]) | {"nodes": self.nodes[number, group]}
                for group, name in enumerate(column.groups)
                if (number, group) in self.sums
            }
            for number, column in enumerate(self.columns)
        }
