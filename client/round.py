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

from fedgraft.client.data.groups_of_people import group_sums
from fedgraft.client.node_task import Workplace
from fedgraft.client.privacy.budget import Budget
from fedgraft.client.privacy.dp_sgd import train_privately
from fedgraft.client.training import local_steps as training
from fedgraft.client.training.optimizers import Steps, new_optimizer
from fedgraft.common.errors import Code, Refused
from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.privacy.clipping import applied, clipped, noise_like, update_of
from fedgraft.common.tasks.classification_sums import Groups, Sums


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


def run_round(
    place: Workplace,
    received: Mapping[str, Tensor],
    round_: int,
    *,
    clip: float | None = None,
    measured_too: bool = True,
) -> Outcome:
    """Train the received adapter on this node's data for one round.

    Args:
        received: the shared adapter, tensors by name.
        round_: number of the round, from 1.
        clip: L2 norm that the update is clipped to in mode central; default the plan's.
        measured_too: whether the model is measured as received; not where the policy lets out no
            metrics.

    Raises:
        Refused: the backbone is not the one agreed on, or moved while training; or the privacy
            budget does not allow this round, before any gradient.
    """
    plan, model = place.plan, place.model
    started = time.perf_counter()

    # ── the model as received ─────────────────────────────────────────────────────────────────────
    must_be_frozen(place, read=False)  # the last round's end read every byte, as this one's will
    model.load_adapter_state(received)
    measured = None
    if measured_too and (round_ - 1) % plan.evaluate.every == 0:
        measured = training.evaluate(
            *place.for_tests(), len(plan.task.classes), silent=plan.privacy.at_node
        )

    # ── local training ────────────────────────────────────────────────────────────────────────────
    rate = training.learning_rate(
        plan.train.optimizer.lr, plan.train.schedule, round_, plan.train.rounds
    )
    optimizer = new_optimizer(model.trainable_parameters().values(), plan.train.optimizer, rate)
    if plan.privacy.mode == "sample":
        return _privately(place, round_, optimizer, measured, started)
    if plan.privacy.mode == "local":
        return _noised(place, received, round_, optimizer, measured, started)
    trained = _train(place, round_, optimizer)

    # ── what goes back ────────────────────────────────────────────────────────────────────────────
    must_be_frozen(place, read=True)
    state, central = model.adapter_state(), plan.privacy.mode == "central"
    if central:
        state = applied(
            received, clipped(update_of(state, received), clip or plan.privacy.max_update_norm)
        )
    return Outcome(
        state=state,
        examples=1 if central else len(place.train),  # under privacy all nodes weigh the same
        steps=1 if central else trained.steps,  # steps tell the number of examples
        train_loss=None if central else trained.loss,
        seconds=time.perf_counter() - started,
        received=measured,
    )


def _train(place: Workplace, round_: int, optimizer: Steps) -> training.Trained:
    """Local steps without noise, on the model as it is loaded."""
    plan = place.plan
    return training.train(
        *place.for_training(),
        adjustment=adjustment(place),
        epochs=plan.train.local_epochs,
        batch_size=plan.train.batch_size,
        optimizer=optimizer,
        proximal=plan.train.proximal,
        augment=plan.train.augment,
        generator=generator_of(plan.seed, round_, place.node),
    )


def adjustment(place: Workplace) -> Tensor | None:
    """What the plan's loss adds to the logits at this node."""
    if place.plan.train.loss == "cross-entropy":
        return None
    return training.log_shares(place.train.labels, len(place.plan.task.classes))


def _privately(
    place: Workplace, round_: int, optimizer: Steps, measured: Sums | None, started: float
) -> Outcome:
    """The same round under sample-level differential privacy: no loss and no count of examples goes
    back.
    """
    plan, budget = place.plan, _budget(place)
    # ── reserve, train, settle ────────────────────────────────────────────────────────────────────
    with budget.spending(plan, round_) as mechanism:
        train_privately(
            *place.for_training(),
            mechanism=mechanism,
            optimizer=optimizer,
            patients=budget.patients,
            proximal=plan.train.proximal,
            augment=plan.train.augment,
            randomness=budget.randomness(plan, round_),
        )

    # ── what goes back ────────────────────────────────────────────────────────────────────────────
    must_be_frozen(place, read=True)
    return _told(place, place.model.adapter_state(), mechanism.steps, measured, started)


def _noised(
    place: Workplace,
    received: Mapping[str, Tensor],
    round_: int,
    optimizer: Steps,
    measured: Sums | None,
    started: float,
) -> Outcome:
    """The same round under local differential privacy: the whole update is clipped, and noised
    before it leaves.

    Whatever this node's data are, two updates are at most twice the clipping norm apart: the noise
    is scaled to that.
    """
    budget = _budget(place)
    with budget.spending(place.plan, round_) as mechanism:
        _train(place, round_, optimizer)
        most = mechanism.max_grad_norm
        update = clipped(update_of(place.model.adapter_state(), received), most)
        deviation = mechanism.noise_multiplier * 2 * most
        noise = noise_like(update, deviation, budget.randomness(place.plan, round_))
        state = applied(received, {name: update[name] + noise[name] for name in update})
    must_be_frozen(place, read=True)
    return _told(place, state, mechanism.steps, measured, started)


def _told(
    place: Workplace, state: dict[str, Tensor], steps: int, measured: Sums | None, started: float
) -> Outcome:
    """What goes back where this node's own noise protects it: no loss, and the weight of every
    other node.
    """
    return Outcome(
        state=state,
        examples=1,
        steps=steps,
        train_loss=None,
        seconds=time.perf_counter() - started,
        received=measured,
        spent=_budget(place).spent(place.plan),
    )


def _budget(place: Workplace) -> Budget:
    if place.budget is None:
        raise Refused(
            Code.BUDGET,
            f"privacy.mode {place.plan.privacy.mode}: this node has no ledger; nothing was trained",
        )
    return place.budget


def measure(place: Workplace, received: Mapping[str, Tensor]) -> Sums:
    """Metrics of a received adapter on this node's test split, without training. Raises as
    `run_round`.
    """
    return measure_groups(place, received, None)[0]


def measure_groups(
    place: Workplace, received: Mapping[str, Tensor], least: int | None
) -> tuple[Sums, Groups]:
    """As `measure`, and of the groups of people that the plan names; see
    `client/data/groups_of_people.py`.

    Args:
        least: fewest test records of a group of which anything is told; None: nothing is told of
            any.
    """
    must_be_frozen(place, read=True)
    place.model.load_adapter_state(received)
    (model, test), asked = place.for_tests(), place.plan.evaluate.subgroups
    logits = [torch.empty((0, len(place.plan.task.classes)))]
    sums = training.evaluate(
        model, test, len(place.plan.task.classes), logits.append, silent=place.plan.privacy.at_node
    )
    if least is None or not asked:
        return sums, {}
    return sums, group_sums(asked, test, torch.cat(logits), least)


def generator_of(seed: int, round_: int, node: str) -> torch.Generator:
    """The randomness of one node's round: the same on any engine, whichever process or thread runs
    it.
    """
    digest = hashlib.sha256(f"{seed}/{round_}/{node}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def must_be_frozen(place: Workplace, *, read: bool) -> None:
    """Raises `Refused` where the frozen part is not what was agreed on; `read`: every byte of
    it.
    """
    if not place.model.frozen_as(place.fingerprint, read=read):
        found = place.model.frozen_fingerprint()
        raise Refused(
            Code.FROZEN, f"the frozen backbone is {found}, not {place.fingerprint}; nothing is sent"
        )
