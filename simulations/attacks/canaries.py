"""Empirical ε of a plan's mechanism: canaries in a node's data, its real training, guesses from
what came out.

A copy of the plan's model gets a head with one more input for each canary. A canary is a blank
image (or row) that carries its number; on it the head sees that one input alone, lit up. So its
gradient has a direction of its own, which no record and no other canary shares, and is clipped to
the full norm: the worst case that ε must cover, or nearly (a "Dirac canary" in Steinke et al. 2023,
section 6). Each canary is in the data by its own coin, beside all of the node's own records, and
the node's own mechanism trains on them: sampling, clipping, noise, all steps of all rounds, by
`client/privacy/dp_sgd.py`. The auditor sees every step's gradient, as the definition of
differential privacy lets them, and scores a canary by the sum of inner products with it.

The node's ledger is not written: nothing of this run is released.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedgraft.client.data.split import Split
from fedgraft.client.privacy.budget import Budget
from fedgraft.client.privacy.dp_sgd import Mechanism, Randomness, train_privately
from fedgraft.client.round import generator_of
from fedgraft.client.training import local_steps as training
from fedgraft.common.errors import UserError
from fedgraft.common.model.assembly import plan_model
from fedgraft.common.model.grafted_model import GraftedModel, copy_sharing
from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.accounting import bound
from fedgraft.simulations.attacks.empirical_epsilon import audit
from fedgraft.simulations.attacks.target import open_target

CANARIES = 500
_CODE = 1.0e6  # a value that no prepared record has; a canary's number is added to it
# of a lit input: its gradient drowns that of the bias and is clipped wherever records' are
_LIGHT = 100.0


class CanaryHead(nn.Module):
    """A linear head with one more input for each canary; what these add to the logits is their
    gradient alone.

    Attributes:
        lit: inputs `(n, canaries)` of the batch at hand; all zero for a record.
    """

    def __init__(self, head: nn.Linear, canaries: int) -> None:
        super().__init__()
        self.features, self.lit = head.in_features, torch.empty(0)
        self.linear = nn.Linear(head.in_features + canaries, head.out_features)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.weight[:, : self.features] = head.weight
            self.linear.bias.copy_(head.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features (n, features) → logits (n, classes)."""
        features = torch.where(self.lit.any(1, keepdim=True), 0.0, features)
        logits = self.linear(torch.cat([features, self.lit], dim=1))
        # Without their value a canary is never learnt, and its gradient stays as strong as in the
        # first step.
        return logits - (self.lit @ self.linear.weight[:, self.features :].T).detach()


class CanaryModel(GraftedModel):
    """A plan's model with a `CanaryHead`."""

    def __init__(self, model: GraftedModel, canaries: int) -> None:
        net = copy_sharing(model.net, lambda parameter: not parameter.requires_grad)
        head = net.get_submodule(model.head_name)
        if not isinstance(head, nn.Linear):
            raise TypeError(f"the head is a {type(head).__name__}")
        self_head = CanaryHead(head, canaries)
        net.set_submodule(model.head_name, self_head)
        super().__init__(
            net,
            method=model.method,
            classes=model.classes,
            head_name=model.head_name,
            rank=model.rank,
            alpha=model.alpha,
            width=model.width,
        )
        self.canaries = canaries

    @property
    def head(self) -> CanaryHead:
        """The head, with its canaries."""
        found = self.net.get_submodule(self.head_name)
        assert isinstance(found, CanaryHead)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Prepared inputs, canaries among them → logits (n, classes)."""
        code = x.flatten(1).nan_to_num(0.0).amax(1)
        coded = code >= _CODE
        lit = torch.zeros((len(x), self.canaries), dtype=x.dtype)
        lit[coded, (code[coded] - _CODE).long()] = _LIGHT
        self.head.lit = lit
        return self.net(torch.where(coded.view(-1, *[1] * (x.ndim - 1)), 0.0, x))


class WithCanaries(Split):
    """A node's split with some canaries behind it; canary k has label k mod classes."""

    def __init__(self, split: Split, chosen: np.ndarray, classes: int) -> None:
        self.own, self.chosen = split, torch.from_numpy(chosen)
        self.records, self.rows = split.records, np.arange(len(split) + len(chosen))
        self.labels = torch.cat([split.labels, self.chosen % classes])

    def inputs(self, positions: Tensor) -> Tensor:
        """The node's own records, and canaries behind them."""
        mine = positions < len(self.own)
        blank = self.own.inputs(torch.zeros(1, dtype=torch.int64))[0]
        found = torch.empty((len(positions), *blank.shape), dtype=blank.dtype)
        found[mine] = self.own.inputs(positions[mine])
        codes = _CODE + self.chosen[positions[~mine] - len(self.own)].to(blank.dtype)
        found[~mine] = codes.view(-1, *[1] * blank.ndim)
        return found


def canary_scores(
    plan: Plan,
    model: GraftedModel,
    split: Split,
    included: np.ndarray,
    *,
    mechanism: Mechanism | None,
    seed: int,
) -> np.ndarray:
    """Train on a split and the included canaries for all rounds of a plan; score every canary.

    Args:
        model: the plan's model, as for private training (not fused); it is not changed.
        included: `(m,)` bool.
        mechanism: the noisy steps of a round; None: the plan has no privacy, and training is plain,
            for one epoch.
        seed: of sampling and noise.

    Returns:
        `(m,)`: the sum over all steps of minus the gradient along each canary's direction.
    """
    classes, canaries = model.classes, len(included)
    data = WithCanaries(split, np.flatnonzero(included), classes)
    probed = CanaryModel(model, canaries)
    weight = probed.head.linear.weight
    total = torch.zeros((classes, canaries), dtype=torch.float64)

    def look(optimizer: Any, *_: Any) -> None:
        assert weight.grad is not None
        total.sub_(weight.grad[:, probed.head.features :])

    rounds = (
        plan.train.rounds if mechanism else 1
    )  # without noise one look at every record tells all
    for round_ in range(1, rounds + 1):
        rate = training.learning_rate(
            plan.train.optimizer.lr, plan.train.schedule, round_, plan.train.rounds
        )
        optimizer = training.build_optimizer(probed, plan.train.optimizer, rate)
        optimizer.register_step_pre_hook(look)
        if mechanism is None:
            training.train(
                probed,
                data,
                epochs=1,
                batch_size=plan.train.batch_size,
                optimizer=optimizer,
                proximal=plan.train.proximal,
                augment="none",
                generator=generator_of(seed, round_, "canaries"),
            )
        else:
            train_privately(
                probed,
                data,
                mechanism=mechanism,
                optimizer=optimizer,
                patients=(
                    [np.array([k]) for k in range(len(data))]
                    if mechanism.unit == "patient"
                    else None
                ),
                proximal=plan.train.proximal,
                augment="none",
                randomness=Randomness(
                    hashlib.sha256(f"{seed}/{round_}/canaries".encode()).digest()
                ),
            )
    labels = torch.arange(canaries) % classes
    direction = torch.nn.functional.one_hot(labels, classes).T.double() - 1 / classes
    return (direction * total).sum(0).numpy()


def canaries(plan: Plan, run: Path, nodes: Sequence[Path], seed: int) -> dict[str, Any]:
    """Audit the mechanism as the first node runs it, and set the bound beside the ε that the run
    states.

    Returns:
        node, stated_epsilon (None: no privacy), and the fields of
        `fedgraft.simulations.attacks.empirical_epsilon.Audit`.

    Raises:
        UserError: no finished run there, or a plan whose noise is on whole updates.
    """
    if plan.privacy.mode in ("central", "local"):
        raise UserError(
            f"{plan.privacy.mode}: what is noised is a node's whole update, and canaries are"
            " records",
            where="privacy.mode",
            remedy="leave the audit out, or study a plan with `mode: sample` or `mode: none`",
        )
    target = open_target(plan, run, nodes)
    data, mechanism, stated, delta = target.nodes[0], None, None, 0.0
    if plan.privacy.mode == "sample":
        mechanism = Budget.open(data.node, plan, data.train).mechanism(plan)
        sigma, rate, steps = mechanism.row
        delta = plan.privacy.delta or 0.0
        # of all rounds, as they are audited here: a node that was not in every cohort of the run
        # has told less
        stated = bound(
            [(sigma, rate, steps * plan.train.rounds)], delta, plan.privacy.accountant
        ).epsilon
    included = np.random.default_rng([seed, 3]).random(CANARIES) < 0.5
    model = plan_model(target.backbone, plan)
    scores = canary_scores(plan, model, data.train, included, mechanism=mechanism, seed=seed)
    found = audit(scores, included, delta=delta)
    return {"kind": "audit", "node": data.node.name, "stated_epsilon": stated, **asdict(found)}
