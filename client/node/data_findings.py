"""What a preflight finds in a node's data under a plan."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from fedgraft.client.data.groups_of_people import choose_reported, find_groups
from fedgraft.client.data.split import Split
from fedgraft.client.node.finding import Finding, ok, skipped, wrong
from fedgraft.client.node.node_file import Node
from fedgraft.client.node_task import open_splits, open_validation
from fedgraft.client.readers.reader_table import PREFIX
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.plan.chosen_by_validation import measures_validation
from fedgraft.common.plan.plan import Plan


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
    except UserError as error:
        detail = f"{error.where}: {error.what}" if error.where else error.what
        return None, [wrong("data", detail, error.remedy)]
    splits = Splits(train, test)
    return splits, list(_findings(node, plan, splits))


def _findings(node: Node, plan: Plan, splits: Splits) -> Iterator[Finding]:
    records = splits.train.records
    count = sum(len(rows) for rows in records.splits.values())
    yield ok("data", f"{count:,} records of the plan's task, read and checked")
    yield _check_classes(plan, "training", splits.train)
    yield _check_classes(plan, "test", splits.test)
    yield from _check_validation(plan, splits.train)
    yield _check_patients(node, plan, splits)
    yield from _check_groups(node, plan, splits.test)
    if not records.skipped:
        yield ok("unreadable", "none")
        return
    counts = [f"{number:,}: {problem}" for problem, number in records.source.problems.items()]
    left_out = f"{records.skipped:,} records cannot be read and are left out"
    yield ok("unreadable", f"{left_out} ({'; '.join(counts)})")


def _check_classes(plan: Plan, which: str, split: Split) -> Finding:
    counts = Counter(split.labels.tolist())
    shares = []
    missing = []
    for number, name in enumerate(plan.task.classes):
        shares.append(f"{name} {counts[number]:,}")
        if not counts[number]:
            missing.append(name)
    listed = ", ".join(shares)
    if missing and which == "training":
        remedy = (
            "see task.labels in the plan, or take part knowing that this node teaches nothing about"
            " them"
        )
        return wrong(f"{which} data", f"{listed}: none of {', '.join(missing)}", remedy)
    return ok(f"{which} data", f"{len(split):,}: {listed}")


def _check_validation(plan: Plan, train: Split) -> Iterator[Finding]:
    """Give what there is to choose by, where the plan measures it; without any others choose."""
    if not measures_validation(plan.train, plan.evaluate):
        return
    validation = open_validation(train)
    if len(validation):
        yield _check_classes(plan, "validation", validation)
        return
    remedy = "see evaluate.validation_fraction in the plan"
    yield skipped("validation data", f"none: this node has no say in what is chosen; {remedy}")


def _check_patients(node: Node, plan: Plan, splits: Splits) -> Finding:
    column = node.data.patient
    owners = splits.train.records.patients(column)
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
    return ok("patients", detail)


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
