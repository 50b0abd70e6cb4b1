"""What an attacker of a finished run has before them: the shared model, and each node's last
update.

A run's folder keeps the shared adapter after its last two rounds. Which update a node sent in the
last round follows from the first of them: training is repeatable, and so is a simulation's noise.
So a node's round is run again here, by the client's own code but for its ledger: nothing is spent,
for nothing new is released.

Members are the rows that nodes trained on. The others are rows of the same source that no one
trained on: the validation split where there is one, else the test split. A test split of another
source (as in many public data sets) would be told apart by its source, not by membership.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.data.split import Split
from fedgraft.client.node.node_file import Node, load_node
from fedgraft.client.node_task import Workplace, open_splits
from fedgraft.client.privacy.budget import Budget
from fedgraft.client.privacy.dp_sgd import Mechanism
from fedgraft.client.round import run_round
from fedgraft.client.store.activation_cache import open_cache
from fedgraft.common import run_files
from fedgraft.common.adapters.fused import fuse
from fedgraft.common.backbones.backbone import Backbone, backbone_from_state
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import read_tensors
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.model.assembly import plan_model
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.accounting import Spent
from fedgraft.server.papers.run_folder import RunFolder

State = dict[str, Tensor]


@dataclass(frozen=True)
class NodeData:
    """One node's rows: those that it trained on, and those of the same source that no one did."""

    node: Node
    train: Split
    others: Split


class Unrecorded(Budget):
    """A budget that is not written to the node's ledger: what is trained here is seen by nobody but
    the attacker.
    """

    @contextmanager
    def spending(self, plan: Plan, round_: int) -> Iterator[Mechanism]:
        """The mechanism that the node would run."""
        yield self.mechanism(plan)

    def spent(self, plan: Plan) -> Spent:
        """Nothing."""
        return Spent(0.0, plan.privacy.delta or 0.0, plan.privacy.unit, plan.privacy.accountant, ())


@dataclass(frozen=True)
class Target:
    """A finished run, opened for attack.

    Attributes:
        backbone, model: as the nodes had them; the model's adapter is whatever was loaded last.
        nodes: each node's data, in the order of the nodes.
        first: the adapter before the first round.
        received: the shared adapter that the nodes had before the last round.
        shared: the shared adapter after it.
        fingerprint: of the frozen part.
        others: "val" or "test": where non-members were taken from.
    """

    plan: Plan
    backbone: Backbone
    model: GraftedModel
    nodes: tuple[NodeData, ...]
    first: State
    received: State
    shared: State
    fingerprint: str
    others: str

    def update(self, number: int) -> State:
        """The adapter that node `number` sends back in the last round."""
        return self.trained(
            number, self.nodes[number].train, self.received, self.plan.train.rounds, self.plan.seed
        )

    def trained(self, number: int, train: Split, received: State, round_: int, seed: int) -> State:
        """The adapter after one round at node `number`, by the client's own code, without its
        ledger.

        Args:
            train: the rows to train on; the node's own, or a shadow's.
            seed: of the order of examples and of the noise.
        """
        node, plan = self.nodes[number].node, self.plan.model_copy(update={"seed": seed})
        budget = (
            None if plan.privacy.mode in ("none", "central") else Unrecorded.open(node, plan, train)
        )
        place = self._place(
            node, plan, train, Split(train.records, np.empty(0, np.int64), train.preprocess)
        )
        place.budget = budget
        return run_round(place, received, round_).state

    @torch.inference_mode()
    def logits(self, number: int, state: State, split: Split) -> Tensor:
        """Logits `(n, classes)` of some of node `number`'s rows under an adapter."""
        self.model.load_adapter_state(state)
        model, rows = self._place(self.nodes[number].node, self.plan, split, split).for_tests()
        found = [model(x) for x, _ in rows.in_order()]
        return torch.cat(found) if found else torch.empty((0, self.model.classes))

    def losses(self, number: int, state: State, split: Split) -> np.ndarray:
        """Cross-entropy `(n,)` in nats of some of node `number`'s rows under an adapter."""
        return (
            F.cross_entropy(self.logits(number, state, split), split.labels, reduction="none")
            .double()
            .numpy()
        )

    def _place(self, node: Node, plan: Plan, train: Split, test: Split) -> Workplace:
        return Workplace(
            node.name, plan, self.model, train, test, self.fingerprint, cache=open_cache(node)
        )


def open_target(plan: Plan, run: Path, nodes: Sequence[Path]) -> Target:
    """Open a run and the data of its nodes.

    Args:
        run: folder of a finished run.
        nodes: the node.yaml files that it was run with.

    Raises:
        UserError: no finished run of this plan there, or data that is missing.
    """
    folder = RunFolder.open_existing(run, plan)
    last = folder.latest()
    file = run / run_files.SHARED_MODEL / "backbone.safetensors"
    if last is None or last.round != plan.train.rounds or not file.is_file():
        raise UserError(
            "holds no finished run", where=str(run), remedy="let the run finish, then attack it"
        )
    preprocess = _preprocess(run)
    backbone = backbone_from_state(plan.backbone.name, read_tensors(file), preprocess)
    model = plan_model(backbone, plan)
    first = model.adapter_state()
    received = first
    if plan.train.rounds > 1:
        before = run_files.checkpoint_of(run, last.round - 1)
        received = read_tensors(before / run_files.ADAPTER)
    if plan.privacy.mode == "none":
        fuse(model.net)
    data, others = node_data(plan, nodes, preprocess)
    return Target(
        plan,
        backbone,
        model,
        data,
        first,
        received,
        last.adapter,
        model.frozen_fingerprint(),
        others,
    )


def node_data(
    plan: Plan, nodes: Sequence[Path], preprocess: Preprocess
) -> tuple[tuple[NodeData, ...], str]:
    """Each node's members and non-members, and which split the latter are from."""
    found = []
    for path in nodes:
        node = load_node(path)
        train, test = open_splits(node, plan, preprocess)
        val = Split(train.records, train.records.splits["val"], preprocess)
        found.append((node, train, val, test))
    others = "val" if any(len(val) for _, _, val, _ in found) else "test"
    data = tuple(
        NodeData(node, train, val if others == "val" else test) for node, train, val, test in found
    )
    return data, others


def _preprocess(run: Path) -> Preprocess:
    about = json.loads((run / run_files.SHARED_MODEL / "model.json").read_text())
    return Preprocess.from_json(about["preprocess"])
