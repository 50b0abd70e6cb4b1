"""What a preflight finds in a node's data under a plan."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass

import numpy as np

from fedgraft.client.data.data_set import Records
from fedgraft.client.data.groups_of_people import choose_reported, find_groups
from fedgraft.client.data.left_out import count_left_out, describe_left_out
from fedgraft.client.data.shared_images import TESTED, count_copies, describe_copies
from fedgraft.client.data.split import Split
from fedgraft.client.node.finding import Finding, ok, skipped, wrong
from fedgraft.client.node.node_file import Node
from fedgraft.client.node_task import open_splits, open_validation
from fedgraft.client.readers.reader_table import PREFIX
from fedgraft.client.readers.source import Source
from fedgraft.common.errors import UserError, UserErrors
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.plan.chosen_by_validation import measures_validation
from fedgraft.common.plan.plan import Plan
from fedgraft.common.tasks import TASKS


@dataclass(frozen=True, eq=False)
class Splits:
    """A node's data under a plan."""

    train: Split
    test: Split


def check_data_exists(node: Node) -> Finding:
    """Return whether the data is there, where no plan says how to read it."""
    path = node.data.path
    if path.startswith(PREFIX) or os.access(path, os.R_OK):
        return ok("data", "there; give --plan to read it as the plan would")
    detail = "not there, or not readable by this user"
    return wrong("data", detail, "see data.path in the node's file")


def check_data(node: Node, plan: Plan) -> tuple[Splits | None, list[Finding]]:
    """Return the data as the plan reads it, None where it cannot be read, and what is found."""
    try:
        # only labels and columns are looked at: whatever the preparation, nothing is prepared
        train, test = open_splits(node, plan, Preprocess())
    except UserErrors as several:
        return None, [_mistake(error) for error in several.errors]
    except UserError as error:
        return None, [_mistake(error)]
    splits = Splits(train, test)
    return splits, list(_findings(node, plan, splits))


def _mistake(error: UserError) -> Finding:
    detail = f"{error.where}: {error.what}" if error.where else error.what
    return wrong("data", detail, error.remedy)


def _findings(node: Node, plan: Plan, splits: Splits) -> Iterator[Finding]:
    records = splits.train.records
    yield _count_records(records)
    yield from _count_files(records.source)
    trained = set(np.flatnonzero(_count(plan, splits.train)).tolist())
    yield _check_classes(plan, "training", splits.train, trained)
    yield _check_classes(plan, "test", splits.test, trained)
    yield from _check_validation(plan, splits.train)
    yield _check_patients(node, plan, splits)
    yield from _check_copies(node, plan, records)
    yield from _check_unknown(records.source)
    yield from _check_groups(node, plan, splits.test)
    if not records.skipped:
        yield ok("unreadable", "none")
        return
    counts = [f"{number:,}: {problem}" for problem, number in records.source.problems.items()]
    left_out = f"{records.skipped:,} records cannot be read and are left out"
    yield ok("unreadable", f"{left_out} ({'; '.join(counts)})")


def _count_records(records: Records) -> Finding:
    """Return how many records are of the task, and what became of the others."""
    count = sum(len(rows) for rows in records.splits.values())
    detail = f"{count:,} records of the plan's task, read and checked"
    left_out = count_left_out(records.source, records.strata)
    if left_out:
        detail += (
            f"; {left_out.total():,} with labels that the plan does not name are left out"
            f" ({describe_left_out(left_out)})"
        )
    elsewhere = len(records.source) - count - left_out.total()
    if elsewhere:
        detail += f"; {elsewhere:,} are not this node's (data.rows)"
    return ok("data", detail)


def _count_files(source: Source) -> Iterator[Finding]:
    """Give what the files of a folder or manifest are; the counts add up."""
    if not source.files:
        return
    beside = dict(source.beside)
    total = len(source) + source.skipped + sum(beside.values())
    counts = [f"{len(source):,} read"]
    counts += [f"{count:,} {words}" for words, count in beside.items()]
    counts.append(f"{source.skipped:,} unreadable")
    yield ok("files", f"{total:,} files: {', '.join(counts)}")


def _count(plan: Plan, split: Split) -> np.ndarray:
    """Return how many records a split has of each class, or of what stands for them."""
    return TASKS[plan.task.question].count(split.records.labels[split.rows], plan.task)


def _check_classes(plan: Plan, which: str, split: Split, trained: Set[int]) -> Finding:
    """Return how many records of each class a split has.

    Args:
        trained: the classes that the training split has: tests lack another one because of it.
    """
    question = TASKS[plan.task.question]
    counts = _count(plan, split).tolist()
    shares = []
    missing = []
    for number, name in enumerate(question.counted(plan.task)):
        shares.append(f"{name} {counts[number]:,}")
        is_missed = question.needs_each and (which == "training" or number in trained)
        if not counts[number] and is_missed:
            missing.append(name)
    listed = ", ".join(shares)
    what = f"{which} data"
    if not len(split):
        return skipped(what, "none: nothing is measured here; see data.test_fraction")
    if not missing:
        return ok(what, f"{len(split):,}: {listed}")
    if which == "training":
        remedy = (
            "see task.labels in the plan, or take part knowing that this node teaches nothing about"
            " them"
        )
        return wrong(what, f"{listed}: none of {', '.join(missing)}", remedy)
    return wrong(
        what,
        f"{len(split):,}: {listed}: none of {', '.join(missing)}",
        "give the test split records of every class that is trained on, or leave the splits out:"
        " then they are made so; or take part knowing that nothing is measured of them here",
    )


def _check_validation(plan: Plan, train: Split) -> Iterator[Finding]:
    """Give what there is to choose by, where the plan measures it; without any others choose."""
    if not measures_validation(plan.train, plan.evaluate):
        return
    validation = open_validation(train)
    if len(validation):
        yield _check_classes(plan, "validation", validation, set())
        return
    remedy = "see evaluate.validation_fraction in the plan"
    yield skipped("validation data", f"none: this node has no say in what is chosen; {remedy}")


def _check_patients(node: Node, plan: Plan, splits: Splits) -> Finding:
    column = node.data.patient
    owners = splits.train.records.owners
    if owners is None:
        if plan.privacy.unit == "patient" and plan.privacy.mode != "none":
            detail = "the plan protects patients, and the data does not name them"
            says = "name the column or array that says whose each record is as data.patient"
            return wrong("patients", detail, f"{says} (now {column})")
        detail = f"the data has no {column}: each record counts as a patient of its own"
        return skipped("patients", detail)

    trained = {owners[row] for row in splits.train.rows}
    tested = {owners[row] for row in splits.test.rows}
    both = len(trained & tested)
    if both:
        detail = f"{both:,} of {len(trained | tested):,} have records in training and in test"
        remedy = (
            "split by patient: give row numbers as data.rows, or a split column; else test results"
            " flatter"
        )
        return wrong("patients", detail, remedy)
    detail = f"{len(trained):,} in training, {len(tested):,} in test, none in both"
    most = max(Counter(owners[row] for row in splits.train.rows).values())
    if most > 1:
        detail += f"; up to {most:,} training records of one patient"
        if plan.privacy.at_node and plan.privacy.unit == "example":
            detail += ": ε is for one of them, not for a person, see privacy.unit: patient"
    return ok("patients", detail)


def _check_copies(node: Node, plan: Plan, records: Records) -> Iterator[Finding]:
    """Give whether images are there twice, and on which sides."""
    copies = count_copies(records.source, records.splits)
    words = describe_copies(copies)
    if not words:
        return
    # of row numbers that node.yaml names; the data's own splits were checked when they were read
    if copies.shared.get(TESTED, 0) > node.data.max_shared * len(records.splits["test"]):
        remedy = "take them out of one of the two in data.rows, or raise data.max_shared"
        yield wrong("copies", words, remedy)
        return
    if not copies.shared:
        words += "; none is in two splits"
    if plan.privacy.at_node and plan.privacy.unit == "example":
        words += "; ε is for one of them, not for all copies"
    yield ok("copies", words)


def _check_unknown(source: Source) -> Iterator[Finding]:
    """Give each column's values that the plan's categories do not name."""
    for column, count in source.unknown.items():
        yield ok(f"column {column}", f"{count:,} unknown values count as missing")


def _check_groups(node: Node, plan: Plan, test: Split) -> Iterator[Finding]:
    """Give of which of the plan's groups of people this node would tell.

    A column that is missing keeps nobody out.
    """
    least = node.policy.least_in_group(plan.privacy)
    for column in plan.evaluate.subgroups:
        what = f"groups by {column.column}"
        groups = find_groups(column, test.records, test.rows)
        if least is None:
            why = "see min_subgroup, report_metrics, or the plan's privacy"
            yield skipped(what, f"nothing is told of them: {why}")
        elif groups is None:
            yield skipped(what, "the data has no such column: nothing is told of them")
        else:
            reported = choose_reported(groups, len(column.groups), least)
            names = ", ".join(column.groups[group] for group in reported)
            yield ok(what, f"told of: {names or 'none, they are too few here'}")
