"""What a node works on: one plan, its grafted model, and the splits of the node's own data."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedgraft.client.data.data_set import DataSource, Records, open_records
from fedgraft.client.data.examples import Examples
from fedgraft.client.data.split import Split
from fedgraft.client.node.node_file import Node
from fedgraft.client.privacy.round_budget import RoundBudget
from fedgraft.client.readers.pixel_form import PixelForm
from fedgraft.client.readers.reader import ManifestColumns
from fedgraft.client.readers.scan_form import ScanForm
from fedgraft.client.store.activation_cache import ActivationCache
from fedgraft.client.store.cut_models import Cut, behind_prefix
from fedgraft.client.store.error_feedback import Feedback
from fedgraft.common.adapters.fused import fuse
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.inputs.material import Preparation
from fedgraft.common.model.assembly import plan_model
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.wire.layout import Layout


@dataclass(frozen=True, eq=False)
class NodeTask:
    """One node, one plan. The model may be shared with other nodes: each round loads its own
    adapter first.

        outcome = run_round(NodeTask("north", plan, model, train, test, fingerprint), state, 1)

    Attributes:
        node: the node's name.
        fingerprint: of the frozen part, as it must stay.
        budget: what differential privacy may spend.
        cache: where activations are kept; None: they are computed each time.
        layout: of the adapter on the wire.
        memory: what rounding updates lost so far, where they are encoded.
        validation: what a round is chosen by.
        block: examples that are trained on at once on a card, see `step_block.py`; None: a whole
            batch.
    """

    node: str
    plan: Agreement
    model: GraftedModel
    train: Examples
    test: Examples
    fingerprint: str
    budget: RoundBudget | None = field(default=None, repr=False)
    cache: ActivationCache | None = None
    layout: Layout | None = field(default=None, repr=False)
    memory: Feedback | None = None
    validation: Examples | None = None
    block: int | None = None

    def for_training(self) -> tuple[GraftedModel, Examples]:
        """Return what is trained, and on what: from the first trainable layer on, unless inputs are
        augmented.
        """
        if self.plan.train.augment != "none":
            return self.model, self.train
        return self._behind_prefix(self.train)

    def for_tests(self) -> tuple[GraftedModel, Examples]:
        """Return what is measured, and on what."""
        return self._behind_prefix(self.test)

    def for_validation(self) -> tuple[GraftedModel, Examples] | None:
        """Return what is measured where a round is chosen by it, and on what; None where the node
        has no validation records.
        """
        if self.validation is None or not len(self.validation):
            return None
        return self._behind_prefix(self.validation)

    def _behind_prefix(self, examples: Examples) -> tuple[GraftedModel, Examples]:
        cut = Cut(
            backbone=self.plan.backbone.name,
            fingerprint=self.fingerprint,
            dtype=self.plan.train.activations,
        )
        return behind_prefix(self.model, examples, cut, self.cache)


def open_data(node: Node, plan: Agreement) -> Records:
    """Return a node's data under the plan's task.

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
        manifest=ManifestColumns(names.path, names.label, names.split, names.mask),
        max_unreadable=data.max_unreadable,
        cache=node.store / "seen",
        validation_fraction=plan.evaluate.validation_fraction,
        reading=data.reading,
        signal=plan.backbone.signal,
        form=PixelForm.of(plan.backbone),
        scan=ScanForm.of(plan.backbone),
    )
    return open_records(source, plan.task)


def open_splits(node: Node, plan: Agreement, preparation: Preparation) -> tuple[Split, Split]:
    """Return train and test split of a node's data under the plan's task. Raise as `open_data`."""
    records = open_data(node, plan)
    train = Split(records, records.splits["train"], preparation)
    test = Split(records, records.splits["test"], preparation)
    return train, test


def open_validation(train: Split) -> Split:
    """Return the validation split of the data that a training split is of."""
    return Split(train.records, train.records.splits["val"], train.preparation)


def working_model(backbone: Backbone, plan: Agreement, round_: int | None = None) -> GraftedModel:
    """Return the plan's model as a node trains it in a round (default: the last): convolutions with
    LoRA are fused, unless per-example gradients need them apart.
    """
    model = plan_model(backbone, plan, round_)
    if plan.privacy.mode != "sample":
        fuse(model.net)
    return model
