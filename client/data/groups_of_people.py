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
from fedgraft.client.readers.source import plain
from fedgraft.common.errors import UserError
from fedgraft.common.plan.evaluate_section import SubgroupsSection
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks import TASKS
from fedgraft.common.wire.metric_records import Groups

log = logging.getLogger("fedgraft.client")


def group_sums(
    columns: Sequence[SubgroupsSection],
    test: Split,
    outputs: Tensor,
    task: TaskSection,
    least: int,
) -> Groups:
    """Return sums of each group of which something may be told, by the numbers of its column and of
    itself.

    Args:
        outputs: `(n, …)` of the split's records, in its order.
        least: fewest records of a group, and of what is left of all without those that are told of.
    """
    sums_of = TASKS[task.question].sums
    sums: Groups = {}
    for number, column in enumerate(columns):
        membership = members(column, test.records, test.rows)
        if membership is None:
            log.warning("no column %r here: nothing is told of its groups", column.column)
            continue
        for group in told(membership, len(column.groups), least):
            mine = torch.from_numpy(membership == group)
            sums[number, group] = sums_of(outputs[mine], test.labels[mine])
    return sums


def members(column: SubgroupsSection, records: Records, rows: np.ndarray) -> np.ndarray | None:
    """The group of each of these rows, int64 `(n,)`, −1 for none; None where the data has no such
    column.
    """
    try:
        texts = records.column(column.column)
    except UserError:
        return None
    if column.edges:
        numbers = np.array([_number(texts[row]) for row in rows.tolist()], np.float64)
        return np.where(
            np.isfinite(numbers), np.searchsorted(column.edges, numbers, side="right"), -1
        )
    known = {plain(value): number for number, value in enumerate(column.values)}
    return np.array([known.get(plain(texts[row]), -1) for row in rows.tolist()], np.int64)


def told(member: np.ndarray, groups: int, least: int) -> list[int]:
    """The groups that may be told of: none below `least` members, nor any that gives those in none
    of them away.
    """
    counts = np.bincount(member[member >= 0], minlength=groups)
    large = [group for group in range(groups) if counts[group] >= least]
    if large and 0 < len(member) - counts[large].sum() < least:
        large.remove(min(large, key=lambda group: counts[group]))
    return large


def _number(text: str) -> float:
    """A cell's number; NaN where it is empty or none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
