"""`fedgraft node approve`: what a plan would do at this hospital, and the record of who said yes.

It is worked out from the plan alone, with a network of random values for the sizes: nothing is
trained, and nobody's weights are needed to read what would leave the building. Only of a network
that its weights describe, such as a model's folder, these are read.
`client/node/approval_words.py` puts it in plain words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.client.node.approvals import Approvals
from fedgraft.client.node.finding import clause_in_words
from fedgraft.client.node.node_file import Node
from fedgraft.common.backbones import family_line
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.files.bundle import (
    Bundle,
    build_bundle,
    extensions_in,
    hash_extensions,
    read_bundle,
    unpacked,
)
from fedgraft.common.model.assembly import (
    find_weights,
    load_network,
    plan_model,
    shape_options,
)
from fedgraft.common.plan.phases import rounds_for
from fedgraft.common.plan.plan import Plan, agreement_of
from fedgraft.common.plan.plan_file import agreement_hash, canonical
from fedgraft.common.wire.layout import Layout


@dataclass(frozen=True)
class Proposal:
    """What a person is asked to approve.

        proposal = propose(node, plan)
        approve(node, proposal, by="Dr. A")

    Attributes:
        identity: the agreement's hash.
        layout: names and shapes of the tensors that leave the node in each round of steps; of a
            closed form, of its adapter.
        sums: of each round in which sums leave the node, how many features they are over.
        refusals: clauses of this node's policy that the plan meets anyhow, whoever approves it.
        extensions: what the bundle holds beside a release of fedgraft: the hash of each by name.
    """

    plan: Plan
    identity: str
    layout: Layout
    sums: Mapping[int, int]
    bundle: Bundle
    refusals: tuple[str, ...]
    extensions: Mapping[str, str]

    @property
    def bytes_each_round(self) -> int:
        """Raw size of what leaves the node in a round: float32."""
        return 4 * self.layout.values


def propose(
    node: Node,
    plan: Plan,
    bundle: Bundle | None = None,
    *,
    base: Path = Path(),
    weights: str | None = None,
) -> Proposal:
    """Work out what the plan would do here.

    Args:
        bundle: the code that would run; default: this release's own.
        base: the folder of the plan's file, beside which weights are looked up.
        weights: of a network that they describe: where they lie here, if not where the plan says.

    Raises:
        UserError: the plan needs an extension that the bundle does not hold as the plan has it, or
            weights that are not here or not the plan's.
    """
    bundle = bundle or build_bundle()
    extensions = hash_extensions(unpacked(bundle))
    for needed in plan.extensions:
        held = extensions.get(needed.name, "not in it")
        if held != needed.hash:
            what = f"the plan needs extension {needed.name} {needed.hash}, the bundle's is {held}"
            remedy = "give the coordinator's .fab file: --bundle FILE"
            raise UserError(what, where="extensions", remedy=remedy)
    network = _load_shape(plan, base, weights)
    sums: dict[int, int] = {}
    for number in rounds_for(plan.train, "sums"):
        sums[number] = plan_model(network, plan, number).count_features()
    # a closed form has no steps: its last round's
    first, *_ = (*rounds_for(plan.train, "steps"), plan.train.rounds)
    layout = Layout.of(plan_model(network, plan, first).adapter_state())
    refusals = tuple(_find_refusals(node, plan))
    return Proposal(plan, agreement_hash(plan), layout, sums, bundle, refusals, extensions)


def _load_shape(plan: Plan, base: Path, weights: str | None) -> Backbone:
    """Return a network of the plan's sizes."""
    if not family_line(plan.backbone.name).described_by_weights:
        return load_backbone(plan.backbone.name, **shape_options(plan))
    if weights is None and plan.backbone.weights is None:
        what = f"{plan.backbone.name} is described by its weights, and the plan names none"
        raise UserError(what, where="backbone.weights", remedy="say where they are: --weights PATH")
    return load_network(plan, find_weights(plan, base, weights))


def unpack_extensions(bundle: Bundle, folder: Path) -> list[Path]:
    """Write the extensions of a bundle into a folder, for people to read, and return theirs."""
    extensions = extensions_in(unpacked(bundle))
    for files in extensions.values():
        for path, content in files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return [folder / name for name in extensions]


def open_bundle(file: Path) -> Bundle:
    """Return the coordinator's bundle. Raise `UserError` where the file is no bundle of ours."""
    if not file.is_file():
        remedy = "give the .fab file of the coordinator"
        raise UserError("no such file", where=str(file), remedy=remedy)
    return read_bundle(file.read_bytes(), str(file))


def _find_refusals(node: Node, plan: Plan) -> list[str]:
    refusals = []
    try:
        node.policy.check_approved(plan_hash=None, backbone=plan.backbone.fingerprint)
    except Refused as refusal:
        refusals.append(clause_in_words(refusal))
    try:
        node.policy.check_privacy(plan.privacy)
    except Refused as refusal:
        refusals.append(clause_in_words(refusal))
    return refusals


def approve(node: Node, proposal: Proposal, by: str) -> dict[str, Any]:
    """Install the code and record the approval; return what was recorded, as JSON values.

    Raises:
        UserError: this user may not write the administrator's folder.
    """
    bundle = proposal.bundle
    approvals = Approvals(node.approvals)
    installed = approvals.install(bundle, by)
    body = {
        "plan": proposal.identity,
        "name": proposal.plan.name,
        "canonical": canonical(agreement_of(proposal.plan)),
        "layout": proposal.layout.digest,
        "bundle": bundle.hash,
    }
    entry = approvals.record("plan", body, by)
    return {
        "plan": proposal.identity,
        "by": entry.body["by"],
        "time": entry.time,
        "entry": entry.number,
        "hash": entry.hash,
        "bundle": bundle.hash,
        "installed": installed,
        "folder": str(node.approvals / "apps" / bundle.folder),
    }
