"""One round at one node, as one script.

    the model as received → its metrics → local training (DP) → the adapter that goes back

The frozen part is fingerprinted before and after; if it moved, nothing is sent.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from client import training
from client.privacy import train_privately
from client.workplace import Workplace
from common.accounting import Spent
from common.errors import Refused
from common.metrics import Sums


@dataclass(frozen=True)
class Outcome:
    """The adapter after local training, and what was measured on the way."""

    state: dict[str, Tensor]
    examples: int
    steps: int
    train_loss: float | None
    seconds: float
    received: Sums | None
    spent: Spent | None = None


def run_round(place: Workplace, received: Mapping[str, Tensor], round_: int) -> Outcome:
    """Train the received adapter on this node's data for one round.

    Args:
        received: the shared adapter, tensors by name.
        round_: number of the round, from 1.

    Raises:
        Refused: the backbone is not the one agreed on, or moved while training; or the privacy budget does not
            allow this round, before any gradient.
    """
    plan, model = place.plan, place.model
    started = time.perf_counter()

    # ── the model as received ────────────────────────────────────────────────────────────────────────
    _must_be_frozen(place, "before")
    model.load_adapter_state(received)
    measured = None
    if (round_ - 1) % plan.evaluate.every == 0:
        measured = training.evaluate(model, place.test, len(plan.task.classes))

    # ── local training ───────────────────────────────────────────────────────────────────────────────
    rate = training.learning_rate(plan.train.optimizer.lr, plan.train.schedule, round_, plan.train.rounds)
    optimizer = training.build_optimizer(model, plan.train.optimizer, rate)
    if plan.privacy.mode != "none":
        return _privately(place, round_, optimizer, measured, started)
    trained = training.train(
        model,
        place.train,
        epochs=plan.train.local_epochs,
        batch_size=plan.train.batch_size,
        optimizer=optimizer,
        proximal=plan.train.proximal,
        augment=plan.train.augment,
        generator=generator_of(plan.seed, round_, place.node),
    )

    # ── what goes back ───────────────────────────────────────────────────────────────────────────────
    _must_be_frozen(place, "after")
    return Outcome(
        state=model.adapter_state(),
        examples=len(place.train),
        steps=trained.steps,
        train_loss=trained.loss,
        seconds=time.perf_counter() - started,
        received=measured,
    )


def _privately(
    place: Workplace, round_: int, optimizer: torch.optim.Optimizer, measured: Sums | None, started: float
) -> Outcome:
    """The same round under sample-level differential privacy: no loss and no count of examples goes back."""
    plan, budget = place.plan, place.budget
    if plan.privacy.mode != "sample" or budget is None:
        raise Refused(f"privacy.mode {plan.privacy.mode}: this node cannot hold it; nothing was trained")
    # ── reserve, train, settle ───────────────────────────────────────────────────────────────────────
    with budget.spending(plan, round_) as mechanism:
        train_privately(
            place.model,
            place.train,
            mechanism=mechanism,
            optimizer=optimizer,
            patients=budget.patients,
            proximal=plan.train.proximal,
            augment=plan.train.augment,
            randomness=budget.randomness(plan, round_),
        )

    # ── what goes back ───────────────────────────────────────────────────────────────────────────────
    _must_be_frozen(place, "after")
    return Outcome(
        state=place.model.adapter_state(),
        examples=1,  # all nodes weigh the same
        steps=mechanism.steps,
        train_loss=None,
        seconds=time.perf_counter() - started,
        received=measured,
        spent=budget.spent(plan),
    )


def measure(place: Workplace, received: Mapping[str, Tensor]) -> Sums:
    """Metrics of a received adapter on this node's test split, without training. Raises as `run_round`."""
    _must_be_frozen(place, "before")
    place.model.load_adapter_state(received)
    return training.evaluate(place.model, place.test, len(place.plan.task.classes))


def generator_of(seed: int, round_: int, node: str) -> torch.Generator:
    """The randomness of one node's round: the same on any engine, whichever process or thread runs it."""
    digest = hashlib.sha256(f"{seed}/{round_}/{node}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _must_be_frozen(place: Workplace, when: str) -> None:
    found = place.model.frozen_fingerprint()
    if found != place.fingerprint:
        raise Refused(f"the frozen backbone is {found} {when} round, not {place.fingerprint}; nothing is sent")
