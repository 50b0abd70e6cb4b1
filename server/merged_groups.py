"""Metrics of groups of people over all nodes, merged as those of everybody are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from fedgraft.common.plan.evaluate_section import SubgroupsSection
from fedgraft.common.tasks.task import Sums
from fedgraft.common.wire.metric_records import Groups

Metrics = dict[str, Any]


class MergedGroups:
    """What nodes told of the groups that a plan names: sums of metrics by column and group.

        groups = MergedGroups(plan.evaluate.subgroups)
        groups.add(read_groups(content, groups.sizes, sums))
        groups.metrics(summarise)["sex"]["f"]["nodes"]

    Args:
        columns: whose groups nodes may tell of.
    """

    def __init__(self, columns: Sequence[SubgroupsSection]) -> None:
        self._columns = columns
        self._sums: Groups = {}
        self._nodes: Counter[tuple[int, int]] = Counter()

    @property
    def sizes(self) -> list[int]:
        """How many groups each column has; empty where none may be told of."""
        return [len(column.groups) for column in self._columns]

    def add(self, groups: Groups) -> None:
        """Add what one node told; it was checked."""
        for position, sums in groups.items():
            if position in self._sums:
                sums = self._sums[position] + sums
            self._sums[position] = sums
            self._nodes[position] += 1

    def metrics(self, summarise: Callable[[Sums], Metrics]) -> dict[str, dict[str, Metrics]]:
        """Return by column and group its metrics, and the number of nodes that told of it.

        A group that no node told of is not in it: no records, too few at each node, or not allowed.
        """
        return {
            column.column: self._column(number, column.groups, summarise)
            for number, column in enumerate(self._columns)
        }

    def _column(
        self, number: int, names: Sequence[str], summarise: Callable[[Sums], Metrics]
    ) -> dict[str, Metrics]:
        groups: dict[str, Metrics] = {}
        for group, name in enumerate(names):
            position = (number, group)
            if position in self._sums:
                measured = summarise(self._sums[position])
                groups[name] = measured | {"nodes": self._nodes[position]}
        return groups
