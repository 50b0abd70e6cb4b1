"""`fedgraft node approve`: what a plan would do at this hospital, in plain words, and the record of
who said yes.

The words are made from the plan alone, with a network of random values for the sizes: nothing is
trained, and nobody's weights are needed to read what would leave the building.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.client.node.approvals import Approvals
from fedgraft.client.node.node_file import Node
from fedgraft.common.backbones.backbone import load_backbone
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.files.bundle import Bundle, build_bundle, read_bundle
from fedgraft.common.model.assembly import plan_model
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import agreement_hash, canonical
from fedgraft.common.wire.layout import Layout
from fedgraft.common.wire.update import BESIDE


@dataclass(frozen=True)
class Proposal:
    """What a person is asked to approve.

    Attributes:
        layout: names and shapes of the tensors that leave the node in each round.
        refusals: clauses of this node's policy that the plan meets anyhow, whoever approves it.
    """

    plan: Plan
    identity: str
    layout: Layout
    bundle: Bundle
    refusals: tuple[str, ...]

    @property
    def bytes_each_round(self) -> int:
        """Raw size of what leaves the node in a round: float32."""
        return 4 * self.layout.values


def propose(node: Node, plan: Plan, bundle_file: Path | None) -> Proposal:
    """Work out what the plan would do here.

    Args:
        bundle_file: the code that the coordinator sent, if not this release's own; its contents are
            shown.

    Raises:
        UserError: the file is no bundle of fedgraft.
    """
    bundle = build_bundle()
    if bundle_file is not None:
        if not bundle_file.is_file():
            raise UserError(
                "no such file",
                where=str(bundle_file),
                remedy="give the .fab file of the coordinator",
            )
        bundle = read_bundle(bundle_file.read_bytes(), str(bundle_file))
    network = load_backbone(
        plan.backbone.name,
        image_size=plan.backbone.image_size,
        hidden=plan.backbone.hidden,
        columns=plan.task.inputs,
    )
    layout = Layout.of(plan_model(network, plan).adapter_state())
    refusals = []
    for check in (
        lambda: node.policy.check_approved(plan_hash=None, backbone=plan.backbone.fingerprint),
        lambda: node.policy.check_privacy(plan.privacy),
    ):
        try:
            check()
        except Refused as refusal:
            refusals.append(refusal.reason)
    return Proposal(plan, agreement_hash(plan), layout, bundle, tuple(refusals))


def in_words(node: Node, proposal: Proposal) -> str:
    """The proposal for a person who does not read YAML: what is trained, how long, what leaves, at
    what ε.
    """
    plan, layout = proposal.plan, proposal.layout
    train, private = plan.train, plan.privacy.mode != "none"
    lines = [
        f"Plan {plan.name}",
        f"  {proposal.identity}",
        "",
        "What it learns",
        f"  to tell apart: {', '.join(plan.task.classes)} ({plan.task.kind.replace('-', ' ')})",
        f"  on a frozen {plan.backbone.name}, which is not changed; trained is the {_method(plan)}",
        "",
        "How long",
        (
            f"  {train.rounds} rounds; in each, {train.local_epochs}"
            f" pass{'es' if train.local_epochs > 1 else ''} over this hospital's training data,"
            f" {train.batch_size} records at a time"
        ),
        "",
        "What leaves this hospital",
        (
            f"  after each round {layout.values:,} numbers in {len(layout.shapes)} tensors,"
            f" {_size(proposal.bytes_each_round)};"
            f" {_size(train.rounds * proposal.bytes_each_round)} in all"
        ),
        *_tensors(layout),
        f"  with it {BESIDE[plan.privacy.mode]}",
        f"  {_reports(node, plan)}",
        *_groups(node, plan),
        "  no record, no image, no label, no file name",
        "",
        "Differential privacy",
        *_privacy(node, plan),
        "",
        "Code that would run",
        f"  fedgraft {proposal.bundle.name.split('.', 2)[2]}, {proposal.bundle.hash}",
    ]
    if not private:
        lines.insert(
            -3,
            "  What leaves was computed from the records and may say something about single ones.",
        )
    if proposal.refusals:
        lines += ["", "This node's policy refuses it, approved or not:"]
        lines += [f"  ✗ {reason.removeprefix('policy: ')}" for reason in proposal.refusals]
    return "\n".join(lines)


def approve(node: Node, proposal: Proposal, by: str) -> dict[str, Any]:
    """Install the code and record the approval; what was recorded, as JSON values.

    Raises:
        UserError: this user may not write the administrator's folder.
    """
    approvals = Approvals(node.approvals)
    installed = approvals.install(proposal.bundle, by)
    entry = approvals.record(
        "plan",
        {
            "plan": proposal.identity,
            "name": proposal.plan.name,
            "canonical": canonical(proposal.plan),
            "layout": proposal.layout.digest,
            "bundle": proposal.bundle.hash,
        },
        by,
    )
    return {
        "plan": proposal.identity,
        "by": entry.body["by"],
        "time": entry.time,
        "entry": entry.number,
        "hash": entry.hash,
        "bundle": proposal.bundle.hash,
        "installed": installed,
        "folder": str(node.approvals / "apps" / proposal.bundle.folder),
    }


def _method(plan: Plan) -> str:
    adapter = plan.adapter
    return {
        "head": "new classifier only",
        "lora": f"LoRA adapter of rank {adapter.rank} and the classifier",
        "bottleneck": f"bottleneck adapter of width {adapter.width} and the classifier",
        "scale-shift": "scale and shift of each channel and the classifier",
        "bias": "added biases and the classifier",
        "full": "whole network: all of it is trained and travels",
    }[adapter.method]


def _tensors(layout: Layout) -> list[str]:
    sizes = sorted(layout.shapes, key=lambda shape: (-math.prod(shape[1]), shape[0]))
    rows = [
        f"    {name}  {' × '.join(map(str, shape)) or '1'}  {_size(4 * math.prod(shape))}"
        for name, shape in sizes
    ]
    return rows if len(rows) <= 12 else [*rows[:10], f"    and {len(rows) - 10} smaller ones"]


def _reports(node: Node, plan: Plan) -> str:
    if node.policy.noises_metrics(plan.privacy):
        return (
            "counts of right and wrong answers on the test records, with noise that the ledger"
            " counts"
        )
    if not node.policy.reports(plan.privacy):
        return "no metrics (this node's policy)"
    return (
        "sums over the test records (answers by class, scores, losses), from which accuracy and the"
        " like are computed"
    )


def _groups(node: Node, plan: Plan) -> list[str]:
    """Which groups of people the plan asks to be measured by themselves, and whether this node
    tells of them.
    """
    asked = [f"{each.column} ({', '.join(each.groups)})" for each in plan.evaluate.subgroups]
    if not asked:
        return []
    if (least := node.policy.least_in_group(plan.privacy)) is None:
        why = "this node's policy" if plan.privacy.mode == "none" else "ε would not cover it"
        return [
            f"  nothing of groups of people, which the plan asks for ({why}): {'; '.join(asked)}"
        ]
    return [
        (
            "  after the last round the same sums for groups of people, by the columns that the"
            " plan names; of none with"
        ),
        (
            f"  fewer than {least} test records, nor of any that would give such a group away"
            " (min_subgroup):"
        ),
        *(f"    {each}" for each in asked),
    ]


def _privacy(node: Node, plan: Plan) -> list[str]:
    wanted, policy = plan.privacy, node.policy
    if wanted.mode == "none":
        return ["  none"]
    whose = {
        "example": "a single record",
        "patient": "all records of one patient",
        "node": "what all of this hospital's data did to the model",
    }[wanted.unit]
    how = {
        "sample": "each step's gradient is clipped and noised here, before anything leaves",
        "local": "what leaves is noised here",
        "central": "the noise is added by the server, which sees what this hospital sends",
    }[wanted.mode]
    amount = (
        f"ε at most {wanted.target_epsilon:g} for the whole run"
        if wanted.target_epsilon is not None
        else f"noise multiplier {wanted.noise_multiplier:g}"
    )
    lines = [f"  {how}", f"  {amount} at δ = {wanted.delta:g}; it hides {whose}"]
    ceilings = policy.ceilings(wanted)
    if ceilings.run is not None:
        lines.append(f"  this node stops at ε = {ceilings.run:g} in this run")
    if ceilings.total is not None:
        lines.append(f"  and at ε = {ceilings.total:g} over everything ever run on this data")
    return lines


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return (
                f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
            )
        count /= 1000
    return f"{count:.1f} GB"
