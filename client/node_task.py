"""What a node needs to work on a plan: the grafted model and the two splits of its own data."""

from __future__ import annotations

from dataclasses import dataclass

from fedgraft.client.data.data_set import DataSource, Records, TaskData, open_records
from fedgraft.client.data.split import Split
from fedgraft.client.node.node_file import Node
from fedgraft.client.privacy.budget import Budget
from fedgraft.client.readers.reader import ManifestColumns
from fedgraft.client.store.activation_cache import ActivationCache
from fedgraft.client.store.activations import behind_prefix
from fedgraft.common.adapters.fused import fuse
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.model.assembly import plan_model
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.plan import Plan


@dataclass
class Workplace:
    """One node, one plan. The model may be shared with other nodes: each round loads its own
    adapter first.
    """

    node: str
    plan: Plan
    model: GraftedModel
    train: Split
    test: Split
    fingerprint: str  # of the frozen part, as it must stay
    budget: Budget | None = None  # what differential privacy may spend
    cache: ActivationCache | None = (
        None  # where activations are kept; None: they are computed each time
    )

    def for_training(self) -> tuple[GraftedModel, Split]:
        """What is trained, and on what: from the first trainable layer on, unless images are
        augmented.
        """
        return (
            (self.model, self.train)
            if self.plan.train.augment != "none"
            else self._behind_prefix(self.train)
        )

    def for_tests(self) -> tuple[GraftedModel, Split]:
        """What is measured, and on what."""
        return self._behind_prefix(self.test)

    def _behind_prefix(self, split: Split) -> tuple[GraftedModel, Split]:
        identity = {"backbone": self.plan.backbone.name, "fingerprint": self.fingerprint}
        dtype = self.plan.train.activations
        return behind_prefix(self.model, split, identity=identity, dtype=dtype, cache=self.cache)


def open_data(node: Node, plan: Plan) -> Records:
    """A node's data under the plan's task.

    Raises:
        UserError: the data is missing, unreadable, or does not fit the task.
    """
    data = node.data
    names = data.columns
    source = DataSource(
        path=data.path,
        format=data.format,
        rows=data.rows_path,
        test_fraction=data.test_fraction,
        patient=data.patient,
        manifest=ManifestColumns(names.path, names.label, names.split),
        max_unreadable=data.max_unreadable,
        cache=node.store / "seen",
    )
    return open_records(source, TaskData.of(plan.task))


def open_splits(node: Node, plan: Plan, preprocess: Preprocess) -> tuple[Split, Split]:
    """Train and test split of a node's data, under the plan's task. Raises as `open_data`."""
    records = open_data(node, plan)
    return (
        Split(records, records.splits["train"], preprocess),
        Split(records, records.splits["test"], preprocess),
    )


def working_model(backbone: Backbone, plan: Plan) -> GraftedModel:
    """The plan's model as a node trains it: convolutions with LoRA are fused, unless Opacus needs
    them apart.
    """
    model = plan_model(backbone, plan)
    if plan.privacy.mode != "sample":
        fuse(model.net)
    return model
