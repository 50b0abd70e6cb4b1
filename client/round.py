"""One round at one node, as one script.

    the model as received → its metrics → local training (DP) → release → the adapter that goes back

The frozen part is fingerprinted before and after; if it moved, nothing is sent.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.groups_of_people import group_sums
from fedgraft.client.data.split import Split
from fedgraft.client.node_task import NodeTask
from fedgraft.client.privacy.clipping_engine import losses_of
from fedgraft.client.privacy.dp_sgd import PrivateTraining, train_privately
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.privacy.round_budget import RoundBudget
from fedgraft.client.release.outgoing import Outgoing, ReleaseTerms
from fedgraft.client.release.release_chain import release
from fedgraft.client.training import local_steps
from fedgraft.client.training.optimizers import Steps, new_optimizer
from fedgraft.common.errors import Code, Refused
from fedgraft.common.plan.phases import rounds_measured
from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.statistics.temperature import sum_losses
from fedgraft.common.tasks import TASKS
from fedgraft.common.wire.metric_records import Groups
from fedgraft.common.wire.temperature_record import TemperatureSums


@dataclass(frozen=True)
class Outcome:
    """The adapter after local training, and what was measured on the way.

    Attributes:
        state: the adapter that leaves, tensors by name.
        encoded: what travels instead of it, where updates are encoded.
        examples: the weight that the node claims.
        train_loss: mean loss over the local steps, nats; None under differential privacy.
        seconds: the round took.
        received: metric sums of the model as it was received; None: not measured.
    """

    state: dict[str, Tensor]
    examples: int
    steps: int
    train_loss: float | None
    seconds: float
    received: Any
    spent: Spent | None = None
    encoded: np.ndarray | None = None


def run_round(
    task: NodeTask,
    received: Mapping[str, Tensor],
    round_: int,
    *,
    clip: float | None = None,
    measure: bool = True,
) -> Outcome:
    """Train the received adapter on this node's data for one round.

    Args:
        received: the shared adapter, tensors by name.
        round_: number of the round, from 1.
        clip: L2 norm that the update is clipped to in mode central; default the plan's.
        measure: whether the model is measured as received; not where the policy lets out no
            metrics.

    Raises:
        Refused: the backbone is not the one agreed on, or moved while training; or the privacy
            budget does not allow this round, before any gradient.
    """
    plan = task.plan
    model = task.model
    started = time.perf_counter()

    # ── the model as received ─────────────────────────────────────────────────────────────────────
    # the last round's end read every byte, as this one's will
    check_frozen(task, read=False)
    model.load_adapter_state(received)
    measured = None
    if measure and is_measured(task, round_):
        tail, tests = task.for_tests()
        silent = plan.privacy.at_node
        measured = local_steps.evaluate(tail, tests, plan.task, silent=silent)

    # ── local training ────────────────────────────────────────────────────────────────────────────
    optimizer = new_round_optimizer(task, round_)
    terms = ReleaseTerms(plan, round_, clip, layout=task.layout, memory=task.memory)
    if plan.privacy.mode == "sample":
        trained = _train_privately(task, round_, optimizer)
    elif plan.privacy.mode == "local":
        trained, mechanism = _train_under_budget(task, round_, optimizer)
        randomness = require_budget(task).randomness(plan, round_)
        terms = replace(terms, mechanism=mechanism, randomness=randomness)
    else:
        trained = _train(task, round_, optimizer)

    # ── what goes back ────────────────────────────────────────────────────────────────────────────
    check_frozen(task, read=True)
    outgoing = release(Outgoing(model.adapter_state(), received), terms)
    seconds = time.perf_counter() - started
    return compose_outcome(task, outgoing, trained, measured=measured, seconds=seconds)


def is_measured(task: NodeTask, round_: int) -> bool:
    """Whether the plan measures the shared model as it is received in a round."""
    plan = task.plan
    return round_ in rounds_measured(plan.train, plan.evaluate.every)


def new_round_optimizer(task: NodeTask, round_: int) -> Steps:
    """Return the plan's optimizer at a round's learning rate, over what is trained."""
    section = task.plan.train
    rate = local_steps.learning_rate(section.optimizer.lr, section.schedule, round_, section.rounds)
    return new_optimizer(task.model.trainable_parameters().values(), section.optimizer, rate)


def compose_outcome(
    task: NodeTask,
    outgoing: Outgoing,
    trained: local_steps.Trained,
    *,
    measured: Any,
    seconds: float,
) -> Outcome:
    """Return what goes back of a round: under differential privacy no loss and no count of
    examples, and the weight of every other node.
    """
    privacy = task.plan.privacy
    outcome = Outcome(
        state=outgoing.state(),
        encoded=outgoing.encoded,
        examples=len(task.train),
        steps=trained.steps,
        train_loss=trained.loss,
        seconds=seconds,
        received=measured,
    )
    if privacy.mode == "none":
        return outcome
    outcome = replace(outcome, examples=1, train_loss=None)
    if privacy.mode == "central":
        # steps tell the number of examples
        return replace(outcome, steps=1)
    return replace(outcome, spent=require_budget(task).spent(task.plan))


# ── training ──────────────────────────────────────────────────────────────────────────────────────
def _train(task: NodeTask, round_: int, optimizer: Steps) -> local_steps.Trained:
    """Take local steps without noise, on the model as it is loaded."""
    plan = task.plan
    model, examples = task.for_training()
    training = local_steps.local_training(plan, task.train.labels, task.block)
    generator = round_generator(plan.seed, round_, task.node)
    return local_steps.train(model, examples, training, optimizer=optimizer, generator=generator)


def _train_under_budget(
    task: NodeTask, round_: int, optimizer: Steps
) -> tuple[local_steps.Trained, Mechanism]:
    """Take the same steps for an update that is noised as a whole: reserve, train, settle."""
    budget = require_budget(task)
    with budget.spending(task.plan, round_) as mechanism:
        trained = _train(task, round_, optimizer)
    return replace(trained, steps=mechanism.steps), mechanism


def _train_privately(task: NodeTask, round_: int, optimizer: Steps) -> local_steps.Trained:
    """Take noisy steps under sample-level differential privacy: reserve, train, settle."""
    plan = task.plan
    budget = require_budget(task)
    model, examples = task.for_training()
    with budget.spending(plan, round_) as mechanism:
        training = PrivateTraining(
            mechanism,
            losses_of(plan.task, plan.train),
            patients=budget.patients,
            proximal=plan.train.proximal,
            augment=local_steps.augmentation_with_targets(plan),
            block=task.block,
        )
        train_privately(model, examples, optimizer, training, budget.randomness(plan, round_))
    return local_steps.Trained(steps=mechanism.steps, loss=0.0)


def require_budget(task: NodeTask) -> RoundBudget:
    """Return what the node may spend. Raise `Refused` where it has no ledger."""
    if task.budget is None:
        mode = task.plan.privacy.mode
        what = f"privacy.mode {mode}: this node has no ledger; nothing was trained"
        raise Refused(Code.BUDGET, what)
    return task.budget


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────
def measure(task: NodeTask, received: Mapping[str, Tensor]) -> Any:
    """Return metrics of a received adapter on this node's test split, without training. Raise as
    `run_round`.
    """
    sums, _ = measure_groups(task, received, None)
    return sums


def measure_groups(
    task: NodeTask, received: Mapping[str, Tensor], least: int | None
) -> tuple[Any, Groups]:
    """Return as `measure`, and of the groups of people that the plan names; see
    `client/data/groups_of_people.py`.

    Args:
        least: fewest test records of a group of which anything is told; None: nothing is told of
            any.
    """
    plan = task.plan
    check_frozen(task, read=True)
    task.model.load_adapter_state(received)
    model, tests = task.for_tests()
    outputs: list[Tensor] = []
    silent = plan.privacy.at_node
    columns = plan.evaluate.subgroups
    look = outputs.append if columns else forget
    sums = local_steps.evaluate(model, tests, plan.task, look, silent=silent)
    if least is None or not columns or not outputs or not isinstance(task.test, Split):
        return sums, {}
    return sums, group_sums(columns, task.test, torch.cat(outputs), plan.task, least)


def forget(outputs: Tensor) -> None:
    """Keep nothing of the outputs: those of answers that are written are gigabytes."""


def measure_validation(task: NodeTask, received: Mapping[str, Tensor]) -> Any:
    """Return metrics of a received adapter on this node's validation split: a round is chosen by
    them. Without validation records they are the sums of none. Raise as `run_round`.
    """
    section = task.plan.task
    check_frozen(task, read=True)
    task.model.load_adapter_state(received)
    measured = task.for_validation()
    if measured is None:
        return TASKS[section.question].zero(section)
    model, examples = measured
    return local_steps.evaluate(model, examples, section)


def measure_temperatures(task: NodeTask, received: Mapping[str, Tensor]) -> TemperatureSums:
    """Return the losses of a received adapter on this node's validation split at each temperature.
    Raise as `run_round`, and where records have no loss of their own.
    """
    section = task.plan.task
    losses = TASKS[section.question].losses
    if losses is None:
        raise Refused(Code.MODEL, f"{section.question}: no record has a loss of its own")
    check_frozen(task, read=True)
    task.model.load_adapter_state(received)
    measured = task.for_validation()
    if measured is None:
        return TemperatureSums.nothing()
    model, examples = measured
    outputs: list[Tensor] = []
    local_steps.evaluate(model, examples, section, outputs.append)
    sums = sum_losses(losses, torch.cat(outputs), examples.labels)
    return TemperatureSums(len(examples), sums)


# ── randomness and the frozen part ────────────────────────────────────────────────────────────────
def round_generator(seed: int, round_: int, node: str) -> torch.Generator:
    """Return the randomness of one node's round: the same on any engine, whichever process or
    thread runs it.
    """
    digest = hashlib.sha256(f"{seed}/{round_}/{node}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def check_frozen(task: NodeTask, *, read: bool) -> None:
    """Raise `Refused` where the frozen part is not what was agreed on; `read`: every byte of it."""
    if not task.model.frozen_as(task.fingerprint, read=read):
        found = task.model.frozen_fingerprint()
        what = f"the frozen backbone is {found}, not {task.fingerprint}; nothing is sent"
        raise Refused(Code.FROZEN, what)
