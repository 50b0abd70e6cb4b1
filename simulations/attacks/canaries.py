"""Empirical ε of a plan's mechanism: canaries in a node's data, its real training, guesses from
what came out.

A copy of the plan's model gets a head with one more input for each canary
(`simulations/attacks/canary_model.py`). A canary's gradient has a direction of its own and is
clipped to the full norm: the worst case that ε must cover, or nearly (a "Dirac canary" in Steinke
et al. 2023, section 6). Each canary is in the data by its own coin, beside all of the node's own
records, and the node's own mechanism trains on them: sampling, clipping, noise, all steps of all
rounds, by `client/privacy/dp_sgd.py`. The auditor sees every step's gradient, as the definition of
differential privacy lets them, and scores a canary by the sum of inner products with it. Where
nodes send sums, these are audited: `sums_audit.py`.

The node's ledger is not written: nothing of this run is released.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.data.examples import Examples
from fedgraft.client.privacy.clipping_engine import losses_of
from fedgraft.client.privacy.dp_sgd import PrivateTraining, train_privately
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.round import round_generator
from fedgraft.client.store.activation_cache import open_cache
from fedgraft.client.store.activations import Activations
from fedgraft.client.store.cut_models import Cut, behind_prefix
from fedgraft.client.training import local_steps
from fedgraft.common.errors import UserError
from fedgraft.common.model.assembly import plan_model
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.tasks import TASKS
from fedgraft.simulations.attacks.canary_model import (
    CanaryModel,
    WithCanaries,
    add_canaries,
    cut_canary_model,
)
from fedgraft.simulations.attacks.empirical_epsilon import audit_guesses
from fedgraft.simulations.attacks.privacy_limit import state_privacy
from fedgraft.simulations.attacks.sums_audit import audit_sums
from fedgraft.simulations.attacks.target import open_target
from fedgraft.simulations.attacks.unrecorded_budget import UnrecordedBudget

CANARIES = 500
PURPOSE = "canaries"


def audit_mechanism(plan: Plan, run: Path, nodes: Sequence[Path], seed: int) -> dict[str, Any]:
    """Audit the mechanism as the first node runs it, and set the bound beside the ε that the run
    states.

    Returns:
        node, stated_epsilon (None: no privacy), and the fields of
        `fedgraft.simulations.attacks.empirical_epsilon.Audit`.

    Raises:
        UserError: no finished run there, or a plan whose noise is on whole updates.
    """
    privacy = plan.privacy
    if privacy.on_updates:
        raise UserError(
            f"{privacy.mode}: what is noised is a node's whole update, and canaries are records",
            where="privacy.mode",
            remedy="leave the audit out, or study a plan with `mode: sample` or `mode: none`",
        )
    if plan.train.method == "closed-form":
        return audit_sums(plan, run, nodes, seed)
    target = open_target(plan, run, nodes)
    data = target.nodes[0]
    mechanism = None
    stated = None
    delta = 0.0
    if privacy.at_node:
        mechanism = UnrecordedBudget.open(data.node, plan, data.train).mechanism(plan)
        # of all rounds, as they are audited here: a node that was not in every cohort of the run
        # has told less
        promise = state_privacy(target, 0)
        delta = promise.delta
        stated = promise.epsilon

    included = np.random.default_rng([seed, 3]).random(CANARIES) < 0.5
    model = plan_model(target.backbone, plan)
    # as the node itself trains: what its frozen layers give is kept
    cut = Cut(plan.backbone.name, target.fingerprint, plan.train.activations)
    _, records = behind_prefix(model, data.train, cut, open_cache(data.node))
    scores = score_canaries(plan, model, records, included, mechanism=mechanism, seed=seed)
    audit = audit_guesses(scores, included, delta=delta)
    return {
        "kind": "audit",
        "node": data.node.name,
        "stated_epsilon": stated,
        **asdict(audit),
    }


# ── scores ────────────────────────────────────────────────────────────────────────────────────────
def score_canaries(
    plan: Plan,
    model: GraftedModel,
    records: Examples,
    included: np.ndarray,
    *,
    mechanism: Mechanism | None,
    seed: int,
) -> np.ndarray:
    """Train on records and the included canaries for all rounds of a plan; score every canary.

    Args:
        model: the plan's model, as for private training (not fused); it is not changed.
        records: the node's, prepared, or as activations behind the model's frozen prefix.
        included: `(m,)` bool.
        mechanism: the noisy steps of a round; None: the plan has no privacy, and training is plain,
            for one epoch.
        seed: of sampling and noise.

    Returns:
        `(m,)`: the sum over all steps of minus the gradient along each canary's direction.
    """
    canaries = len(included)
    numbers = torch.from_numpy(np.flatnonzero(included))
    examples = WithCanaries(records, numbers, model.outputs)
    probed = add_canaries(model, canaries)
    if isinstance(records, Activations):
        probed = cut_canary_model(probed)
    probe = Probe(plan, probed, examples, seed)
    seen = torch.zeros((model.outputs, canaries), dtype=torch.float64)

    rounds = plan.train.rounds
    if mechanism is None:
        # without noise one look at every record tells all
        rounds = 1
    for round_ in range(1, rounds + 1):
        optimizer = probe.build_optimizer(round_, seen)
        if mechanism is None:
            probe.train_plainly(round_, optimizer)
        else:
            probe.train_privately(round_, optimizer, mechanism)

    labels = torch.arange(canaries) % model.outputs
    one_hot = F.one_hot(labels, model.outputs)
    direction = one_hot.T.double() - 1 / model.outputs
    return (direction * seen).sum(0).numpy()


@dataclass(frozen=True)
class Probe:
    """One audited training.

        probe = Probe(plan, add_canaries(model, 500), examples, seed=0)
        probe.train_privately(1, probe.build_optimizer(1, seen), mechanism)

    Attributes:
        plan: how is trained.
        probed: what is trained.
        examples: what it is trained on.
        seed: of sampling and noise.
    """

    plan: Plan
    probed: CanaryModel
    examples: WithCanaries
    seed: int

    def build_optimizer(self, round_: int, seen: Tensor) -> torch.optim.Optimizer:
        """Return the optimizer of a round; minus the gradient of each of its steps is added to
        `seen` `(classes, canaries)`.
        """
        head = self.probed.head
        weight = head.linear.weight

        def look(*_: Any) -> None:
            if weight.grad is None:
                raise RuntimeError("a step without a gradient of the head")
            seen.sub_(weight.grad[:, head.features :])

        section = self.plan.train
        chosen = section.optimizer
        rate = local_steps.learning_rate(chosen.lr, section.schedule, round_, section.rounds)
        optimizer = local_steps.build_optimizer(self.probed.model, chosen, rate)
        optimizer.register_step_pre_hook(look)
        return optimizer

    def train_plainly(self, round_: int, optimizer: torch.optim.Optimizer) -> None:
        """Train for one epoch without noise."""
        training = local_steps.LocalTraining(
            epochs=1,
            batch_size=self.plan.train.batch_size,
            loss=TASKS[self.plan.task.question].loss,
            proximal=self.plan.train.proximal,
        )
        generator = round_generator(self.seed, round_, PURPOSE)
        local_steps.train(
            self.probed.model,
            self.examples,
            training,
            optimizer=optimizer,
            generator=generator,
        )

    def train_privately(
        self, round_: int, optimizer: torch.optim.Optimizer, mechanism: Mechanism
    ) -> None:
        """Take a mechanism's steps. Where the unit is the patient, every record is one."""
        patients = None
        if mechanism.unit == "patient":
            patients = [np.array([position]) for position in range(len(self.examples))]
        text = f"{self.seed}/{round_}/{PURPOSE}"
        digest = hashlib.sha256(text.encode()).digest()
        training = PrivateTraining(
            mechanism,
            losses_of(self.plan.task, self.plan.train),
            patients=patients,
            proximal=self.plan.train.proximal,
        )
        randomness = Randomness(digest)
        train_privately(self.probed.model, self.examples, optimizer, training, randomness)
