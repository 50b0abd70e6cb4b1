"""Records that a plan leaves out, because it names other labels than they have.

A plan that says `task.labels` means it: rows with other labels are left out. Whether a hospital's
other labels are those that it means, or another spelling of the same ones, only a person knows.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from fedgraft.client.readers.reader_table import PREFIX
from fedgraft.client.readers.source import Source
from fedgraft.common.errors import UserError
from fedgraft.common.plan.reading_section import ReadingSection, to_write
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.labels import Label, list_labels

_MOST_SHOWN = 8


def count_left_out(source: Source, strata: np.ndarray) -> Counter[Label]:
    """Return how many records of each label are not part of the task."""
    rows = np.flatnonzero(strata < 0).tolist()
    return Counter(source.labels[row] for row in rows)


def describe_left_out(counts: Counter[Label]) -> str:
    """Return the commonest labels, each with its count."""
    listed = ", ".join(f"{label} {count:,}" for label, count in counts.most_common(_MOST_SHOWN))
    return f"{listed}, …" if len(counts) > _MOST_SHOWN else listed


def check_left_out(
    source: Source, task: TaskSection, strata: np.ndarray, reading: ReadingSection
) -> None:
    """Raise UserError where records would be left out for their label and nobody has allowed it, or
    where a label is one of the plan's in another spelling, allowed or not.

    Of data sets that everybody has nothing is asked.
    """
    counts = source.derived(("left out", task), lambda: count_left_out(source, strata))
    if not counts or source.where.startswith(PREFIX):
        return
    if task.labels is None:
        _check_unlabelled(source, counts[""], reading)
        return
    planned = task.labels
    what = (
        f"{counts.total():,} of {len(source):,} records have labels that the plan does not name and"
        f" would be left out: {describe_left_out(counts)}"
    )
    remedy = f"the plan names {list_labels(planned)}; write labels as it does"
    respelt = {_spelling(label): label for label in planned if isinstance(label, str)}
    for label in counts:
        meant = respelt.get(_spelling(label)) if isinstance(label, str) else None
        if meant is not None:
            what += f"; {label!r} is the plan's {meant!r}, it seems"
            raise UserError(what, where=source.where, remedy=remedy)
    if reading.labels_left_out == "refuse":
        allowed = to_write("labels_left_out", "allow")
        remedy += f"; if these records are not part of the task: {allowed}"
        raise UserError(what, where=source.where, remedy=remedy)


def _check_unlabelled(source: Source, unlabelled: int, reading: ReadingSection) -> None:
    """Raise UserError where records without an answer would be left out and nobody has allowed
    it.
    """
    if not unlabelled or reading.labels_left_out == "allow":
        return
    what = f"{unlabelled:,} of {len(source):,} records have no label and would be left out"
    remedy = f"give them one, or: {to_write('labels_left_out', 'allow')}"
    raise UserError(what, where=source.where, remedy=remedy)


def _spelling(label: Label) -> str:
    """Return a label without capitals, spaces and signs."""
    return re.sub(r"[\W_]+", "", str(label)).lower()
