"""What a preflight finds when it holds a plan against the node's policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fedgraft.client.data.split import Split
from fedgraft.client.node.approvals import check_approved
from fedgraft.client.node.data_findings import Splits
from fedgraft.client.node.finding import Finding, clause_in_words, ok, skipped, wrong
from fedgraft.client.node.node_file import Node
from fedgraft.client.privacy.budget import Budget
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import agreement_hash


def check_policy(node: Node, plan: Plan, splits: Splits | None) -> Iterator[Finding]:
    """Give each clause that the plan would meet when the coordinator offers it.

    Args:
        splits: the node's data; None where it cannot be read.
    """
    yield _check_plan(node, plan)
    yield _check_backbone(node, plan)
    privacy = _check_privacy(node, plan)
    yield privacy
    if splits is None:
        yield skipped("policy: examples", "data first")
        return
    yield _check_examples(node, splits.train)
    if plan.privacy.at_node and not privacy.is_wrong:
        yield _check_budget(node, plan, splits.train)


def _check_plan(node: Node, plan: Plan) -> Finding:
    identity = agreement_hash(plan)
    remedy = (
        f"read it, then: fedgraft node approve PLAN; or list {identity} under policy.approved_plans"
    )
    return _check_clause(
        "policy: plan",
        lambda: check_approved(node, plan_hash=identity, backbone=None),
        f"{identity[:19]}… may run here",
        remedy,
    )


def _check_backbone(node: Node, plan: Plan) -> Finding:
    what = "policy: backbone"
    fingerprint = plan.backbone.fingerprint
    if node.policy.approved_backbones == "any":
        return ok(what, "any may run here")
    if fingerprint is None:
        return skipped(what, "the plan names no fingerprint; the offer will")
    says = f"list {fingerprint} under policy.approved_backbones"
    return _check_clause(
        what,
        lambda: check_approved(node, plan_hash=None, backbone=fingerprint),
        "may run here",
        f"{says}, if it is the one that was agreed on",
    )


def _check_privacy(node: Node, plan: Plan) -> Finding:
    privacy = plan.privacy
    detail = f"{privacy.mode}, unit {privacy.unit}"
    if privacy.mode == "none":
        detail = "none asked for, none demanded"
    remedy = (
        "the plan must offer more, or this hospital demand less: see `privacy` there and `policy`"
        " here"
    )
    return _check_clause(
        "policy: privacy", lambda: node.policy.check_privacy(privacy), detail, remedy
    )


def _check_clause(what: str, check: Callable[[], None], detail: str, remedy: str) -> Finding:
    """Return what is found by a check that raises `Refused`; `detail` where it does not."""
    try:
        check()
    except Refused as refusal:
        return wrong(what, clause_in_words(refusal), remedy)
    return ok(what, detail)


def _check_examples(node: Node, train: Split) -> Finding:
    least = node.policy.min_examples
    detail = f"{len(train):,} for training, min_examples {least:,}"
    if len(train) < least:
        remedy = "this node cannot take part in this plan, or min_examples is set too high"
        return wrong("policy: examples", detail, remedy)
    return ok("policy: examples", detail)


def _check_budget(node: Node, plan: Plan, train: Split) -> Finding:
    what = "privacy budget"
    remedy = (
        "fewer rounds, more noise or a smaller target ε in the plan; or see `fedgraft node ledger`"
        " for what is left"
    )
    try:
        budget = Budget.open(node, plan, train)
        budget.check(plan)
        noise = budget.mechanism(plan).noise_multiplier
    except Refused as refusal:
        first_line = clause_in_words(refusal).splitlines()[0]
        return wrong(what, first_line, remedy)
    except UserError as error:
        first_line = str(error).splitlines()[0]
        return wrong(what, first_line, remedy)
    return ok(what, f"all {plan.train.rounds} rounds fit; noise multiplier {noise:.3g}")
