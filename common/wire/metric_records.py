"""Metric sums as they travel: of all of a node's test records, of groups of people, and of its
validation records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flwr.app import MetricRecord, RecordDict

from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks import TASKS
from fedgraft.common.wire.layout import BadUpdate, reading_foreign_bytes

# the record of sums over validation records
VALIDATION = "validation"
# of groups of people: by the number of the plan's column and of its group
Groups = dict[tuple[int, int], Any]


@reading_foreign_bytes()
def read_sums(record: MetricRecord, task: TaskSection) -> Any:
    """Return metric sums from the wire. Raise `BadUpdate` where they contradict themselves."""
    try:
        return TASKS[task.question].read_sums(dict(record), task)
    except ValueError as error:
        raise BadUpdate(f"metrics: {error}") from error


def group_records(groups: Groups) -> dict[str, MetricRecord]:
    """Return metric sums of groups of people as they travel: under the numbers of column and group
    in the plan, no name.
    """
    return {_name_of(*at): MetricRecord(sums.to_flat()) for at, sums in groups.items()}


@reading_foreign_bytes()
def read_groups(
    content: RecordDict, sizes: Sequence[int], everybody: Any, task: TaskSection
) -> Groups:
    """Return what an evaluation tells of groups beside `received`.

    Args:
        sizes: how many groups each column of the plan has; empty where none are measured.
        everybody: the sums of all the node's test records.

    Raises:
        BadUpdate: other records, sums that contradict themselves, or a column's groups together
            more than all.
    """
    names: dict[str, tuple[int, int]] = {}
    for column, size in enumerate(sizes):
        for group in range(size):
            names[_name_of(column, group)] = (column, group)
    if extra := set(content.keys()) - {"received", *names}:
        raise BadUpdate(f"unexpected records {sorted(map(str, extra))[:5]}")
    groups: Groups = {}
    for name, at in names.items():
        if name in content.metric_records:
            groups[at] = read_sums(content.metric_records[name], task)
    if len(groups) + 1 != len(content):
        raise BadUpdate("a group's sums are of the wrong type")
    for column in range(len(sizes)):
        _check_column(column, groups, everybody, task)
    return groups


def _check_column(column: int, groups: Groups, everybody: Any, task: TaskSection) -> None:
    """Raise `BadUpdate` where a column's groups are together more than all records."""
    together = TASKS[task.question].zero(task)
    for at, sums in groups.items():
        if at[0] == column:
            together = together + sums
    if not together.within(everybody):
        raise BadUpdate(f"the groups of column {column} are together more than all records")


def _name_of(column: int, group: int) -> str:
    return f"subgroup.{column}.{group}"
