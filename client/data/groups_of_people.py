"""Metric sums of groups of people: who is in which, and which of them are too few to be told of.

The plan names columns and values; a value of the data that it does not name never leaves, not even
as a name. A small group's sums would tell of single people, and so would its absence: what is told
of the others, taken from the sums of all, leaves what was kept back. So where those in no told
group are too few, the smallest told group is kept back, too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.data_set import Records
from fedgraft.client.data.split import Split
from fedgraft.common.errors import UserError
from fedgraft.common.plan.evaluate_section import SubgroupsSection
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks import TASKS
from fedgraft.common.tasks.labels import plain_label
from fedgraft.common.wire.metric_records import Groups

log = logging.getLogger("fedgraft.client")


def group_sums(
    columns: Sequence[SubgroupsSection],
    test: Split,
    outputs: Tensor,
    task: TaskSection,
    least: int,
) -> Groups:
    """Return the sums of each group that may be reported, by the numbers of its column and itself.

    Args:
        columns: the groups that the plan names.
        outputs: `(n, …)` of the split's records, in its order.
        least: fewest records of a group, and of what is left of all without those that are
            reported.
    """
    sums_of = TASKS[task.question].sums
    sums: Groups = {}
    for number, column in enumerate(columns):
        groups = find_groups(column, test.records, test.rows)
        if groups is None:
            log.warning("no column %r here: nothing is told of its groups", column.column)
            continue
        for group in choose_reported(groups, len(column.groups), least):
            members = torch.from_numpy(groups == group)
            sums[number, group] = sums_of(outputs[members], test.labels[members], task)
    return sums


def find_groups(column: SubgroupsSection, records: Records, rows: np.ndarray) -> np.ndarray | None:
    """Return the group of each of these rows, int64 `(n,)`, −1 for none.

    None where the data has no such column.
    """
    try:
        texts = records.column(column.column)
    except UserError:
        return None
    chosen = [texts[row] for row in rows.tolist()]
    if column.edges:
        numbers = np.array([_number(text) for text in chosen], np.float64)
        groups = np.searchsorted(column.edges, numbers, side="right")
        return np.where(np.isfinite(numbers), groups, -1)
    known = {plain_label(value): number for number, value in enumerate(column.values)}
    return np.array([known.get(plain_label(text), -1) for text in chosen], np.int64)


def choose_reported(groups: np.ndarray, count: int, least: int) -> list[int]:
    """Return the groups that may be reported.

    None below `least` members, nor any that gives those in none of them away.

    Args:
        groups: group of each record `(n,)`, −1 for none.
        count: how many groups there are.
    """
    sizes = np.bincount(groups[groups >= 0], minlength=count)
    large = [group for group in range(count) if sizes[group] >= least]
    if not large:
        return large
    others = len(groups) - sizes[large].sum()
    if 0 < others < least:
        smallest = min(large, key=lambda group: sizes[group])
        large.remove(smallest)
    return large


def _number(text: str) -> float:
    """Return a cell's number; NaN where it is empty or none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
