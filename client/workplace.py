"""What a node needs to work on a plan: the grafted model and the two splits of its own data."""

from __future__ import annotations

from dataclasses import dataclass

from client.batches import Split
from client.budget import Budget
from client.data import open_records
from client.node import Node
from common.adapters.fused import fuse
from common.assembly import plan_model
from common.backbones import Backbone
from common.model import GraftedModel
from common.plan import Plan
from common.preprocess import Preprocess


@dataclass
class Workplace:
    """One node, one plan. The model may be shared with other nodes: each round loads its own adapter first."""

    node: str
    plan: Plan
    model: GraftedModel
    train: Split
    test: Split
    fingerprint: str  # of the frozen part, as it must stay
    budget: Budget | None = None  # what differential privacy may spend


def open_splits(node: Node, plan: Plan, preprocess: Preprocess) -> tuple[Split, Split]:
    """Train and test split of a node's data, under the plan's task.

    Raises:
        UserError: the data is missing, unreadable, or does not fit the task.
    """
    records = open_records(
        path=node.data.path,
        format=node.data.format,
        rows=node.data.rows,
        test_fraction=node.data.test_fraction,
        kind=plan.task.kind,
        classes=plan.task.classes,
        labels=plan.task.labels,
        columns=plan.task.columns,
        target=plan.task.target,
    )
    return (
        Split(records, records.splits["train"], preprocess),
        Split(records, records.splits["test"], preprocess),
    )


def working_model(backbone: Backbone, plan: Plan) -> GraftedModel:
    """The plan's model as a node trains it: convolutions with LoRA are fused, unless Opacus needs them apart."""
    model = plan_model(backbone, plan)
    if plan.privacy.mode != "sample":
        fuse(model.net)
    return model
