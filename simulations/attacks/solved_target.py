"""What an attacker of a finished run has before them whose head was solved from sums: the shared
head, and the sums that each node sent.

The features of every row that an attack asks about are computed once. Sums of any of them are then
a fraction of a second, by the client's own code: its products, its rounding and, where the plan is
under differential privacy, its exact noise. Ledgers are left alone: nothing new is released.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.examples import Examples
from fedgraft.client.data.split import Split
from fedgraft.client.node_task import NodeTask
from fedgraft.client.store.activation_cache import open_cache
from fedgraft.client.sum_round import list_features, release_sums, sum_split
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.model.solve_head import solve_head, solve_noisy_head
from fedgraft.common.plan.plan import Plan
from fedgraft.common.statistics.gram_sums import GramSums
from fedgraft.common.statistics.noisy_sums import NoisySums
from fedgraft.simulations.attacks.target import State, Target, open_solved_run
from fedgraft.simulations.attacks.unrecorded_budget import UnrecordedBudget

Sums = GramSums | NoisySums


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Examples that are features already, for the model that `read_features` gives.

    FeatureRows(features=torch.zeros(8, 352), labels=torch.zeros(8, dtype=torch.int64))

    Attributes:
        features: float32 `(n, d)`.
        labels: the targets, int64 `(n,)`.
    """

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, positions: np.ndarray) -> FeatureRows:
        """Return some of the rows."""
        return FeatureRows(self.features[positions], self.labels[positions])

    def inputs(self, positions: Tensor) -> Batch:
        """Return features of these positions `(m,)`."""
        return Batch({"features": self.features[positions]})

    def through(self, change: Callable[[Examples], Examples]) -> Examples:
        """Return what `change` makes of the examples."""
        return change(self)


def read_features(model: GraftedModel) -> GraftedModel:
    """Return the head of a model alone: features `(n, d)` → outputs."""
    head = copy.copy(model)
    head.steps = (model.net.get_submodule(model.head_name),)
    return head


@dataclass(frozen=True, eq=False)
class KnownRows:
    """Rows of one node's file with their features: those that it trained on, and the others.

        known.rows_at(np.array([3, 8])).features

    Attributes:
        rows: row numbers, rising, int64 `(n,)`.
        examples: their features and labels.
    """

    rows: np.ndarray
    examples: FeatureRows

    def rows_at(self, rows: np.ndarray) -> FeatureRows:
        """Return the features of some rows of the file."""
        return self.examples[np.searchsorted(self.rows, rows)]


@dataclass(frozen=True, eq=False)
class SolvedTarget:
    """A finished run in closed form, opened for attack.

        target = open_solved(plan, run, nodes)
        sums = target.sum_rows(0, target.run.nodes[0].train.rows, plan.seed)
        head = target.solve([sums])
        outputs = target.outputs(head, target.known[0].examples)

    Attributes:
        run: the run: nodes, shared model.
        reader: the head alone.
        known: the features of each node's rows.
    """

    run: Target
    reader: GraftedModel
    known: tuple[KnownRows, ...]

    @property
    def plan(self) -> Plan:
        """The plan that was run."""
        return self.run.plan

    def sum_rows(self, number: int, rows: np.ndarray, seed: int) -> Sums:
        """Return what node `number` sends where it has these rows, by the client's own code.

        Args:
            seed: of the noise; with the plan's own and the node's own rows: what it did send.
        """
        examples = self.known[number].rows_at(rows)
        return self.sum_examples(number, self.run.nodes[number].select(rows), examples, seed)

    def sum_examples(
        self, number: int, split: Split, examples: FeatureRows, seed: int, round_: int = 0
    ) -> Sums:
        """Return the same of any features.

        Args:
            split: the rows of the node's file that the features stand for: whose they are.
            round_: of the noise; default: the plan's last.
        """
        task = self.open_task(number, split, examples, seed)
        if task.budget is None:
            return sum_split(task)
        return release_sums(task, round_ or self.plan.train.rounds)

    def open_task(self, number: int, split: Split, examples: FeatureRows, seed: int) -> NodeTask:
        """Return what node `number` works on where it has these features; without its ledger."""
        plan = self.plan.model_copy(update={"seed": seed})
        node = self.run.nodes[number].node
        nobody = examples[np.empty(0, np.int64)]
        task = NodeTask(node.name, plan, self.reader, examples, nobody, self.run.fingerprint)
        if not plan.privacy.at_node:
            return task
        return replace(task, budget=UnrecordedBudget.open(node, plan, split))

    def solve(self, sums: Sequence[Sums]) -> State:
        """Return the adapter with the head that the sums of some nodes give together."""
        total = sums[0]
        for each in sums[1:]:
            total = total + each  # type: ignore[operator]
        head = self.run.model.head_name
        if isinstance(total, GramSums):
            return self.run.shared | solve_head(total, self.plan, head).tensors
        return self.run.shared | solve_noisy_head(total, self.plan, head)

    @torch.inference_mode()
    def outputs(self, state: State, examples: FeatureRows) -> Tensor:
        """Return the outputs `(n, outputs)` of some features under an adapter."""
        self.reader.load_adapter_state(state)
        return self.reader(examples.features)

    def losses(self, state: State, examples: FeatureRows) -> np.ndarray:
        """Return the loss `(n,)` in nats of each."""
        losses = self.run.require_losses()(self.outputs(state, examples), examples.labels)
        return losses.double().numpy()


def open_solved(plan: Plan, run: Path, nodes: Sequence[Path]) -> SolvedTarget:
    """Open a run in closed form, and compute the features of its nodes' rows.

    Constants that nodes' histograms gave (tables) are taken as the run had them.

    Raises:
        UserError: no finished run of this plan there, or data that is missing.
    """
    target = open_solved_run(plan, run, nodes)
    # the same bits as on a node
    torch.set_num_threads(1)
    target.model.load_adapter_state(target.shared)
    known = tuple(_compute_known(target, number) for number in range(len(nodes)))
    return SolvedTarget(target, read_features(target.model), known)


def _compute_known(target: Target, number: int) -> KnownRows:
    """Return the features of all rows of a node that it trained on, or that nobody did."""
    data = target.nodes[number]
    rows = np.union1d(data.train.rows, data.others.rows)
    split = data.select(rows)
    cache = open_cache(data.node)
    task = NodeTask(
        data.node.name, target.plan, target.model, split, split, target.fingerprint, cache=cache
    )
    model, examples = task.for_training()
    parts = [features for _, features in list_features(model, examples, silent=True)]
    features = torch.from_numpy(np.concatenate(parts))
    return KnownRows(rows, FeatureRows(features, split.labels))
