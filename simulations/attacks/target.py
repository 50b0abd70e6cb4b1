"""What an attacker of a finished run has before them: the shared model, and each node's last
update.

A run's folder keeps the shared adapter after its last two rounds. Which update a node sent in the
last round follows from the first of them: training is repeatable, and so is a simulation's noise.
So a node's round is run again here, by the client's own code but for its ledger: nothing is spent,
for nothing new is released.

Members are the rows that nodes trained on. The others are rows of the same source that no one
trained on: the validation split where there is one, else the test split. A test split of another
source (as in many public data sets) would be told apart by its source, not by membership. Where
validation rows were measured, a round or a plan is chosen by them: then they are no strangers to
the model, and the test split is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.examples import batches_in_order
from fedgraft.client.data.split import Split
from fedgraft.client.node.node_file import Node
from fedgraft.client.node_task import NodeTask, open_splits
from fedgraft.client.round import run_round
from fedgraft.client.store.activation_cache import open_cache
from fedgraft.common import run_files
from fedgraft.common.adapters.fused import fuse
from fedgraft.common.backbones.backbone import (
    Backbone,
    backbone_from_state,
    preparation_from_json,
)
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import read_tensors
from fedgraft.common.inputs.material import Preparation
from fedgraft.common.model.assembly import bring_to, plan_model
from fedgraft.common.model.devices import find_device
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.model.shared_model import ABOUT, BACKBONE
from fedgraft.common.plan.chosen_by_validation import measures_validation
from fedgraft.common.plan.phases import has_sums, trains_nothing
from fedgraft.common.plan.plan import Plan
from fedgraft.common.tasks import TASKS
from fedgraft.common.tasks.task import Task
from fedgraft.server.papers.run_folder import Checkpoint, RunFolder
from fedgraft.simulations.attacks.unrecorded_budget import UnrecordedBudget
from fedgraft.simulations.engines.simulated_node import load_simulated_node

State = dict[str, Tensor]
# the attacks that know what to do with a node's sums
OF_SUMS = "loss-threshold, lira, reconstruction and audit"


@dataclass(frozen=True)
class NodeData:
    """One node's rows: those that it trained on, and those of the same source that no one did.

    data.train.labels, data.others.labels
    data.select(np.array([4, 8]))  # any rows of its file
    """

    node: Node
    train: Split
    others: Split

    def select(self, rows: np.ndarray) -> Split:
        """Return rows of the node's file `(n,)`, int64, as they are prepared for the model."""
        return Split(self.train.records, rows, self.train.preparation)


@dataclass(frozen=True)
class Target:
    """A finished run, opened for attack.

        target = open_target(plan, run, nodes)
        update = target.update(0)
        losses = target.losses(0, update, target.nodes[0].train)

    Attributes:
        backbone, model: as the nodes had them; the model's adapter is whatever was loaded last.
        nodes: each node's data, in the order of the nodes.
        first: the adapter before the first round.
        last: number of the last round that was run.
        kept: number of the round whose model is shared.
        received: the shared adapter that the nodes had before the last round.
        shared: the shared adapter after the round that is kept; before its temperature, which
            whoever reads the run's papers can undo.
        fingerprint: of the frozen part.
        others: "val" or "test": where non-members were taken from.
    """

    plan: Plan
    backbone: Backbone
    model: GraftedModel
    nodes: tuple[NodeData, ...]
    first: State
    last: int
    kept: int
    received: State
    shared: State
    fingerprint: str
    others: str

    @property
    def task(self) -> Task:
        """The plan's question."""
        return TASKS[self.plan.task.question]

    def update(self, number: int) -> State:
        """Return the adapter that node `number` sends back in the last round."""
        train = self.nodes[number].train
        return self.train(number, train, self.received, self.last, self.plan.seed)

    def train(self, number: int, train: Split, received: State, round_: int, seed: int) -> State:
        """Return the adapter after one round at node `number`, by the client's own code, without
        its ledger.

        Args:
            train: the rows to train on; the node's own, or a shadow's.
            seed: of the order of examples and of the noise.
        """
        data = self.nodes[number]
        plan = self.plan.model_copy(update={"seed": seed})
        task = self._node_task(number, plan, train, data.select(np.empty(0, np.int64)))
        if plan.privacy.at_node:
            task = replace(task, budget=UnrecordedBudget.open(data.node, plan, train))
        return run_round(task, received, round_, measure=False).state

    @torch.inference_mode()
    def outputs(self, number: int, state: State, split: Split) -> Tensor:
        """Return the outputs `(n, outputs)` for some of node `number`'s rows under an adapter."""
        self.model.load_adapter_state(state)
        task = self._node_task(number, self.plan, split, split)
        model, examples = task.for_tests()
        batches = batches_in_order(examples, self.task.at_once)
        outputs = [model(batch).cpu() for batch, _ in batches]
        if not outputs:
            return torch.empty((0, self.model.outputs))
        return torch.cat(outputs)

    def losses(self, number: int, state: State, split: Split) -> np.ndarray:
        """Return the loss `(n,)` in nats of some of node `number`'s rows under an adapter.

        Raises:
            UserError: the losses of this task do not part into those of single records.
        """
        losses = self.require_losses()
        at_once = self.task.at_once
        if at_once is None:
            return losses(self.outputs(number, state, split), split.labels).double().numpy()
        # all outputs at once would be gigabytes
        parts = [np.empty(0)]
        for rows in np.array_split(split.rows, range(at_once, len(split), at_once)):
            part = replace(split, rows=rows)
            own = losses(self.outputs(number, state, part), part.labels)
            parts.append(own.double().numpy())
        return np.concatenate(parts)

    def require_losses(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss of each record from outputs and targets. Raise as `losses`."""
        if self.task.losses is None:
            what = f"{self.task.name}: no record has a loss of its own"
            raise UserError(what, where="attacks", remedy="leave out what attacks by the loss")
        return self.task.losses

    def strata(self, split: Split) -> np.ndarray:
        """Return the stratum of each row `(n,)`, int64: its class."""
        return split.records.strata[split.rows]

    def _node_task(self, number: int, plan: Plan, train: Split, test: Split) -> NodeTask:
        node = self.nodes[number].node
        cache = open_cache(node)
        return NodeTask(node.name, plan, self.model, train, test, self.fingerprint, cache=cache)


# ── opening ───────────────────────────────────────────────────────────────────────────────────────
def open_target(plan: Plan, run: Path, nodes: Sequence[Path]) -> Target:
    """Open a run and the data of its nodes.

    Args:
        run: folder of a finished run.
        nodes: the node.yaml files that it was run with.

    Raises:
        UserError: no finished run of this plan there, data that is missing, or a plan whose rounds
            are not all of steps.
    """
    if trains_nothing(plan.train):
        what = "nothing was trained: the model was made of texts, and no record entered it"
        remedy = "attack a plan that trains by steps, or one of `train: {method: closed-form}`"
        raise UserError(what, where=str(run), remedy=remedy)
    if has_sums(plan.train):
        what = "a head that was solved from sums, and this attack runs a node's steps again"
        remedy = (
            "attack a plan that trains by steps alone, or one of `train: {method: closed-form}`,"
            f" which is attacked by {OF_SUMS}"
        )
        raise UserError(what, where=str(run), remedy=remedy)
    return _open_run(plan, run, nodes)


def open_solved_run(plan: Plan, run: Path, nodes: Sequence[Path]) -> Target:
    """Open a run whose one head was solved from sums, and the data of its nodes.

    Raises:
        UserError: no finished run of this plan there, data that is missing, or a plan with steps.
    """
    if plan.train.method != "closed-form":
        what = "a plan with steps, and this attack is on sums alone"
        remedy = "attack a plan with `train: {method: closed-form}`"
        raise UserError(what, where=str(run), remedy=remedy)
    return _open_run(plan, run, nodes)


def _open_run(plan: Plan, run: Path, nodes: Sequence[Path]) -> Target:
    folder = RunFolder.open_existing(run, plan)
    last = folder.latest()
    weights = folder.shared_model / BACKBONE
    kept = folder.kept()
    if last is None or kept is None or not _is_finished(plan, last) or not weights.is_file():
        remedy = "let the run finish, then attack it"
        raise UserError("holds no finished run", where=str(run), remedy=remedy)

    text = (folder.shared_model / ABOUT).read_text()
    about = json.loads(text)
    preparation = preparation_from_json(plan.backbone.name, about["preprocess"])
    backbone = backbone_from_state(plan.backbone.name, read_tensors(weights), preparation)
    model = plan_model(backbone, plan)
    first = model.adapter_state()
    received = first
    if last.round > 1:
        before = run_files.checkpoint_of(run, last.round - 1)
        received = read_tensors(before / run_files.ADAPTER)
    if plan.privacy.mode == "none":
        fuse(model.net)
    data, others = open_nodes(plan, nodes, backbone.preprocess)
    fingerprint = model.frozen_fingerprint()
    bring_to(model, find_device(data[0].node.device), plan)
    return Target(
        plan=plan,
        backbone=backbone,
        model=model,
        nodes=data,
        first=first,
        last=last.round,
        kept=kept.round,
        received=received,
        shared=kept.adapter,
        fingerprint=fingerprint,
        others=others,
    )


def _is_finished(plan: Plan, last: Checkpoint) -> bool:
    """Whether no round is left to run."""
    validation = last.so_far.validation
    ended_early = validation is not None and validation.ended_early
    return ended_early or last.round == plan.train.rounds


def open_nodes(
    plan: Plan, nodes: Sequence[Path], preparation: Preparation
) -> tuple[tuple[NodeData, ...], str]:
    """Return each node's members and non-members, and which split the latter are from."""
    opened: list[tuple[Node, dict[str, Split]]] = []
    for path in nodes:
        node = load_simulated_node(path)
        train, test = open_splits(node, plan, preparation)
        validation = Split(train.records, train.records.splits["val"], preparation)
        opened.append((node, {"train": train, "val": validation, "test": test}))
    others = "test"
    has_validation = any(len(splits["val"]) for _, splits in opened)
    if has_validation and not measures_validation(plan.train, plan.evaluate):
        others = "val"
    data = [NodeData(node, splits["train"], splits[others]) for node, splits in opened]
    return tuple(data), others
