"""`fedgraft node check`: everything that can go wrong before a node starts, told at once, with its
remedy.

    node file → data under the plan → this machine → the approved code → the way to the coordinator
    → the policy

Nothing is sent but an empty signed question whether the coordinator knows this node's key, nothing
is spent of the privacy budget, and no file is written.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from fedgraft.client.data.groups_of_people import choose_reported, find_groups
from fedgraft.client.data.split import Split
from fedgraft.client.node.approvals import Approvals, check_approved
from fedgraft.client.node.finding import Finding, ok, skipped, wrong
from fedgraft.client.node.node_file import Node
from fedgraft.client.node_task import open_splits
from fedgraft.client.privacy.budget import Budget
from fedgraft.client.privacy.ledger import Ledger
from fedgraft.client.site.launcher import installed
from fedgraft.client.site.network import check_connection
from fedgraft.client.store.journal import Journal
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.files.bundle import build_bundle
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import agreement_hash

LEAST_DISK, LEAST_MEMORY = 1_000_000_000, 1_000_000_000  # bytes


def check_node(node: Node, plan: Plan | None) -> list[Finding]:
    """Look at everything that this node needs, in the order of the file's docstring."""
    found = [ok("node file", f"valid; this node is {node.name}")]
    splits, about_data = _data(node, plan)
    found += [*about_data, *_machine(node), *_approved_code(node)]
    if node.connection is None:
        found.append(skipped("connection", "none in the node's file: a node of a simulation"))
    else:
        found += check_connection(node.connection)
    return found + (
        [skipped("policy", "give --plan to hold a plan against it")]
        if plan is None
        else _policy(node, plan, splits)
    )


# ── data ──────────────────────────────────────────────────────────────────────────────────────────
def _data(node: Node, plan: Plan | None) -> tuple[tuple[Split, Split] | None, list[Finding]]:
    if plan is None:
        path = Path(node.data.path)
        if not node.data.path.startswith("sklearn:") and not os.access(path, os.R_OK):
            return None, [
                wrong(
                    "data",
                    "not there, or not readable by this user",
                    "see data.path in the node's file",
                )
            ]
        return None, [ok("data", "there; give --plan to read it as the plan would")]
    try:
        train, test = splits = open_splits(node, plan, Preprocess())
    except UserError as error:
        where = f"{error.where}: " if error.where else ""
        return None, [wrong("data", f"{where}{error.what}", error.remedy)]
    records = train.records
    in_task = sum(len(rows) for rows in records.splits.values())
    found = [ok("data", f"{in_task:,} records of the plan's task, read and checked")]
    found += [_classes(plan, "training", train), _classes(plan, "test", test)]
    found.append(_patients(node, plan, splits))
    found += _groups(node, plan, test)
    if records.skipped:
        counted = "; ".join(
            f"{count:,}: {problem}" for problem, count in records.source.problems.items()
        )
        found.append(
            ok(
                "unreadable",
                f"{records.skipped:,} records cannot be read and are left out ({counted})",
            )
        )
    else:
        found.append(ok("unreadable", "none"))
    return splits, found


def _classes(plan: Plan, which: str, split: Split) -> Finding:
    counts = Counter(split.labels.tolist())
    said = ", ".join(
        f"{name} {counts.get(number, 0):,}" for number, name in enumerate(plan.task.classes)
    )
    missing = [name for number, name in enumerate(plan.task.classes) if not counts.get(number)]
    if missing and which == "training":
        remedy = (
            "see task.labels in the plan, or take part knowing that this node teaches nothing about"
            " them"
        )
        return wrong(f"{which} data", f"{said}: none of {', '.join(missing)}", remedy)
    return ok(f"{which} data", f"{len(split):,}: {said}")


def _patients(node: Node, plan: Plan, splits: tuple[Split, Split]) -> Finding:
    train, test = splits
    patients = train.records.patients(node.data.patient)
    if patients is None:
        if plan.privacy.unit == "patient" and plan.privacy.mode != "none":
            remedy = (
                "name the column or array that says whose each record is as data.patient (now"
                f" {node.data.patient})"
            )
            return wrong(
                "patients", "the plan protects patients, and the data does not name them", remedy
            )
        return skipped(
            "patients",
            f"the data has no {node.data.patient}: each record counts as a patient of its own",
        )
    training, tested = {patients[row] for row in train.rows}, {patients[row] for row in test.rows}
    both = len(training & tested)
    if both:
        remedy = (
            "split by patient: give row numbers as data.rows, or a split column; else test results"
            " flatter"
        )
        return wrong(
            "patients",
            f"{both:,} of {len(training | tested):,} have records in training and in test",
            remedy,
        )
    return ok("patients", f"{len(training):,} in training, {len(tested):,} in test, none in both")


def _groups(node: Node, plan: Plan, test: Split) -> Iterator[Finding]:
    """Of which of the plan's groups of people this node would tell; a column that is missing keeps
    nobody out.
    """
    least = node.policy.least_in_group(plan.privacy)
    for column in plan.evaluate.subgroups:
        what, member = f"groups by {column.column}", find_groups(column, test.records, test.rows)
        if least is None:
            yield skipped(
                what,
                "nothing is told of them: see min_subgroup, report_metrics, or the plan's privacy",
            )
        elif member is None:
            yield skipped(what, "the data has no such column: nothing is told of them")
        else:
            names = [
                column.groups[group] for group in choose_reported(member, len(column.groups), least)
            ]
            yield ok(what, f"told of: {', '.join(names) or 'none, they are too few here'}")


# ── machine ───────────────────────────────────────────────────────────────────────────────────────
def _machine(node: Node) -> Iterator[Finding]:
    place = node.store
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK | os.X_OK):
        yield wrong(
            "store",
            f"{place} is not writable by this user",
            f"give it to the node's user: chown -R … {place}",
        )
    elif free < LEAST_DISK:
        yield wrong(
            "store",
            f"{free / 1e9:.2f} GB free",
            "free some space, or set another `store` in the node's file",
        )
    else:
        yield ok("store", f"{free / 1e9:.0f} GB free")
    memory = _free_memory()
    if memory is None:
        yield skipped("memory", "this system does not tell")
    elif memory < LEAST_MEMORY:
        yield wrong(
            "memory",
            f"{memory / 1e9:.2f} GB free",
            "a round takes about 1 GB: free some, or use a larger machine",
        )
    else:
        yield ok("memory", f"{memory / 1e9:.1f} GB free")
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if node.threads > cores:
        yield wrong(
            "processors",
            f"threads: {node.threads}, and there are {cores}",
            f"write `threads: {cores}`",
        )
    else:
        yield ok("processors", f"{node.threads} of {cores} for training")
    yield _ledger(node)
    if node.audit_path is not None:
        yield _audit_log(node.audit_path)


def _free_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration, ValueError):
        return None


def _ledger(node: Node) -> Finding:
    if not node.ledger_path.exists():
        return ok("privacy ledger", "none yet: nothing was ever spent")
    try:
        problems = Ledger(node.ledger_path).verify()
    except Refused as refusal:
        problems = [refusal.reason]
    if problems:
        remedy = (
            "nothing private will run; see docs/adr/0004-privacy-ledger.md, and bring back the file"
            " from its backup"
        )
        return wrong("privacy ledger", problems[0], remedy)
    return ok("privacy ledger", "whole")


def _audit_log(path: Path) -> Finding:
    problems = Journal(path).verify()
    if problems:
        remedy = (
            "every message is refused until it is set aside: keep the file and its .head as they"
            " are, find out who"
        )
        return wrong("audit log", problems[0], remedy)
    return ok("audit log", "whole")


# ── approved code ─────────────────────────────────────────────────────────────────────────────────
def _approved_code(node: Node) -> list[Finding]:
    if node.connection is None:
        return []
    approvals = Approvals(node.approvals)
    try:
        about = approvals.bundle()
    except UserError as error:
        return [wrong("approved code", error.what, error.remedy)]
    if about is None:
        remedy = "as the administrator: fedgraft node approve PLAN --node FILE"
        return [wrong("approved code", "none: the node would refuse everything", remedy)]
    if installed(node.approvals / "apps" / about["folder"]) != about["contents"]:
        remedy = (
            "find out who changed it; then, as the administrator: fedgraft node approve PLAN --node"
            " FILE"
        )
        return [wrong("approved code", "what is installed is not what was approved", remedy)]
    if os.geteuid() == 0:
        return [
            skipped(
                "approved code", "whole; whether the node could change it cannot be told as root"
            )
        ]
    if places := approvals.writable():
        remedy = (
            f"give it to the administrator: chown -R root {node.approvals}; chmod -R go-w"
            f" {node.approvals}"
        )
        return [wrong("approved code", f"this user can change {places[0]}", remedy)]
    same = about["contents"] == build_bundle().contents
    which = "this release's" if same else "another release's than this command"
    return [ok("approved code", f"{which}, {about['hash'][:19]}…, not writable by this user")]


# ── policy ────────────────────────────────────────────────────────────────────────────────────────
def _policy(node: Node, plan: Plan, splits: tuple[Split, Split] | None) -> list[Finding]:
    """Each clause that the plan would meet when the coordinator offers it."""
    identity = agreement_hash(plan)
    found = [
        _clause("policy: plan", lambda: check_approved(node, plan_hash=identity, backbone=None), identity[:19] + "… may run here",
                f"read it, then: fedgraft node approve PLAN; or list {identity} under policy.approved_plans"),
    ]  # fmt: skip
    fingerprint = plan.backbone.fingerprint
    if fingerprint is None and node.policy.approved_backbones != "any":
        found.append(skipped("policy: backbone", "the plan names no fingerprint; the offer will"))
    else:
        remedy = (
            f"list {fingerprint} under policy.approved_backbones, if it is the one that was"
            " agreed on"
        )
        said = "any may run here" if node.policy.approved_backbones == "any" else "may run here"
        found.append(
            _clause(
                "policy: backbone",
                lambda: check_approved(node, plan_hash=None, backbone=fingerprint),
                said,
                remedy,
            )
        )
    private = plan.privacy.mode != "none"
    said = (
        f"{plan.privacy.mode}, unit {plan.privacy.unit}"
        if private
        else "none asked for, none demanded"
    )
    remedy = (
        "the plan must offer more, or this hospital demand less: see `privacy` there and `policy`"
        " here"
    )
    found.append(
        _clause("policy: privacy", lambda: node.policy.check_privacy(plan.privacy), said, remedy)
    )
    if splits is None:
        return [*found, skipped("policy: examples", "data first")]
    train, least = splits[0], node.policy.min_examples
    if len(train) < least:
        remedy = "this node cannot take part in this plan, or min_examples is set too high"
        found.append(
            wrong(
                "policy: examples", f"{len(train):,} for training, min_examples {least:,}", remedy
            )
        )
    else:
        found.append(ok("policy: examples", f"{len(train):,} for training, min_examples {least:,}"))
    if plan.privacy.at_node and found[-2].state == "ok":
        found.append(_budget(node, plan, train))
    return found


def _clause(what: str, check: Callable[[], None], said: str, remedy: str) -> Finding:
    try:
        check()
    except Refused as refusal:
        return wrong(what, refusal.reason.removeprefix("policy: "), remedy)
    return ok(what, said)


def _budget(node: Node, plan: Plan, train: Split) -> Finding:
    remedy = (
        "fewer rounds, more noise or a smaller target ε in the plan; or see `fedgraft node ledger`"
        " for what is left"
    )
    try:
        budget = Budget.open(node, plan, train)
        budget.admit(plan)
        noise = budget.mechanism(plan).noise_multiplier
    except (Refused, UserError) as error:
        return wrong("privacy budget", str(error).splitlines()[0].removeprefix("policy: "), remedy)
    return ok("privacy budget", f"all {plan.train.rounds} rounds fit; noise multiplier {noise:.3g}")
