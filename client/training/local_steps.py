"""Local steps of one node: schedule, loss, proximal term, augmentation. No privacy here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.client.data.examples import Examples, batches_in_order, shuffle_batches
from fedgraft.client.training.optimizers import Steps
from fedgraft.common.inputs import INPUTS
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.plan.train_section import OptimizerSection
from fedgraft.common.tasks import TASKS, task_line
from fedgraft.common.tasks.step_losses import (
    inverse_shares,
    losses_as_named,
    stated_weights,
    weigh,
)

# outputs and targets → the mean loss of a batch
Loss = Callable[[Tensor, Tensor], Tensor]
Augment = Callable[[Batch, torch.Generator], Batch]
AugmentPairs = Callable[[Batch, Tensor, torch.Generator], tuple[Batch, Tensor]]


@dataclass(frozen=True)
class Trained:
    """What local training did: steps, and the mean loss over the examples seen, in nats."""

    steps: int
    loss: float


@dataclass(frozen=True)
class LocalTraining:
    """How a node trains in one round.

    Attributes:
        epochs: passes over its data.
        steps: in place of passes; None: passes are counted.
        batch_size: examples in a step.
        loss: (outputs, targets) → the mean loss of a batch, nats.
        proximal: μ of FedProx (Li et al. 2020, eq. 2): adds μ/2 · ‖w − w_received‖² to the loss.
        augment: (batch, targets, generator) → both, changed at random.
        block: examples that go through the model at once; their gradients are added. None: all of a
            batch.
    """

    epochs: int
    batch_size: int
    loss: Loss
    proximal: float = 0.0
    augment: AugmentPairs = lambda batch, targets, generator: (batch, targets)
    steps: int | None = None
    block: int | None = None

    def batches(
        self, examples: Examples, generator: torch.Generator
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Yield the batches of all passes, each in an order of its own."""
        passes = range(self.epochs) if self.steps is None else itertools.count()
        batches = itertools.chain.from_iterable(
            shuffle_batches(examples, self.batch_size, generator) for _ in passes
        )
        return itertools.islice(batches, self.steps)


def local_training(plan: Agreement, labels: Tensor, block: int | None = None) -> LocalTraining:
    """Return how a plan trains at a node whose training examples have these labels.

    Args:
        block: as of `LocalTraining`; a loss that is no mean over examples needs the whole batch.
    """
    if losses_as_named(plan.task, plan.train) is None:
        block = None
    return LocalTraining(
        epochs=plan.train.local_epochs,
        batch_size=plan.train.batch_size,
        loss=loss_of(plan, labels),
        proximal=plan.train.proximal,
        augment=augmentation_with_targets(plan),
        steps=plan.train.local_steps,
        block=block,
    )


def loss_of(plan: Agreement, labels: Tensor) -> Loss:
    """Return the plan's loss at a node whose training examples have these labels."""
    loss = _mean_loss(plan, weights_of(plan, labels))
    shift = balance_of(plan, labels)
    if shift is None:
        return loss
    return lambda outputs, targets: loss(outputs + shift.to(outputs.device), targets)


def _mean_loss(plan: Agreement, weights: Tensor | None) -> Loss:
    """Return the mean loss of a batch, its classes weighted."""
    task = TASKS[plan.task.question]
    losses = losses_as_named(plan.task, plan.train)
    if losses is None or (losses is task.losses and weights is None):
        return task.loss
    if weights is not None:
        losses = weigh(losses, weights)
    return lambda outputs, targets: losses(outputs, targets).mean()


def weights_of(plan: Agreement, labels: Tensor) -> Tensor | None:
    """Return the weight of each class at a node whose training examples have these labels,
    `(classes,)`; None: all weigh 1.
    """
    if plan.train.class_weights == "inverse":
        return inverse_shares(labels, len(plan.task.classes))
    return stated_weights(plan.train)


def balance_of(plan: Agreement, labels: Tensor) -> Tensor | None:
    """Return what the plan's loss adds to a node's outputs; None: nothing."""
    balance = TASKS[plan.task.question].balance
    if plan.train.loss != "balanced" or balance is None:
        return None
    return balance(labels, plan.task)


def augmentation_of(plan: Agreement) -> Augment:
    """Return how the plan changes a batch at random before it is trained on."""
    augment = INPUTS[plan.task.material].augment
    return lambda batch, generator: augment(batch, plan.train.augment, generator)


def augmentation_with_targets(plan: Agreement) -> AugmentPairs:
    """Return the same with the records' targets: masks and boxes are changed as their records are,
    any other target is as it was.
    """
    change = augmentation_of(plan)
    material = INPUTS[plan.task.material]
    line = task_line(plan.task.question)
    pairs = material.augment_boxes if line.has_boxes else material.augment_pairs
    if pairs is None or not line.has_places:
        return lambda batch, targets, generator: (change(batch, generator), targets)
    return lambda batch, masks, generator: pairs(batch, masks, plan.train.augment, generator)


def train(
    model: nn.Module,
    examples: Examples,
    training: LocalTraining,
    *,
    optimizer: Steps,
    generator: torch.Generator,
) -> Trained:
    """Minimise the loss for some passes over examples, in place.

    The model stays in eval mode: a frozen BatchNorm must not absorb private data into its buffers.

    Args:
        generator: the only source of randomness (order of examples, augmentation).
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    received: list[Tensor] = []
    if training.proximal:
        received = [parameter.detach().clone() for parameter in trainable]
    steps = 0
    seen = 0
    loss_sum = 0.0
    for drawn, labels in training.batches(examples, generator):
        batch, targets = training.augment(drawn, labels, generator)
        optimizer.zero_grad(set_to_none=True)
        loss = add_gradients(model, batch, targets, training)
        # The proximal gradient μ(w − w_received), added directly: no graph is needed for it.
        for parameter, start in zip(trainable, received, strict=False):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=training.proximal)
        optimizer.step()
        steps += 1
        loss_sum += loss * len(labels)
        seen += len(labels)
    return Trained(steps=steps, loss=loss_sum / max(seen, 1))


def add_gradients(
    model: nn.Module, batch: Batch, targets: Tensor, training: LocalTraining
) -> float:
    """Add the gradient of a batch's mean loss to what parameters have; return the loss, nats."""
    block = training.block
    if block is None or block >= len(targets):
        outputs = model(batch)
        loss = training.loss(outputs, targets.to(outputs.device))
        loss.backward()
        return float(loss.detach())
    total = 0.0
    for start in range(0, len(targets), block):
        rows = slice(start, start + block)
        outputs = model(batch[rows])
        own = targets[rows].to(outputs.device)
        loss = training.loss(outputs, own) * (len(own) / len(targets))
        loss.backward()
        total += float(loss.detach())
    return total


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    examples: Examples,
    task: TaskSection,
    look: Callable[[Tensor], None] = lambda outputs: None,
    *,
    silent: bool = False,
) -> Any:
    """Return metric sums of a model over examples; `examples` is 0 where there are none.

    Args:
        look: is shown the outputs `(n, …)` of each batch, on the host, in the examples' order.
        silent: a record whose outputs are not finite counts as if all were 0. Under differential
            privacy: a server could send a model that overflows on certain records only, and a
            refusal would tell that they are there.

    Raises:
        Refused: outputs that are not finite, unless `silent`.
    """
    question = TASKS[task.question]
    total = question.zero(task)
    for batch, labels in batches_in_order(examples, question.at_once):
        outputs = model(batch).cpu()
        if silent:
            outputs = keep_finite(outputs)
        look(outputs)
        total = total + question.sums(outputs, labels, task)
    return total


def keep_finite(outputs: Tensor) -> Tensor:
    """Return outputs `(n, …)` with 0 for all of a record's where one is not finite."""
    is_finite = torch.isfinite(outputs).flatten(1).all(1)
    by_record = is_finite.view(-1, *[1] * (outputs.ndim - 1))
    return outputs.where(by_record, 0.0)


def build_optimizer(
    model: nn.Module, section: OptimizerSection, lr: float
) -> torch.optim.Optimizer:
    """Return the plan's optimizer over what is trainable, at this round's learning rate."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = section.weight_decay
    if section.name == "sgd":
        momentum = section.momentum
        return torch.optim.SGD(trainable, lr=lr, momentum=momentum, weight_decay=decay)
    if section.name == "adamw":
        return torch.optim.AdamW(trainable, lr=lr, weight_decay=decay)
    return torch.optim.Adam(trainable, lr=lr, weight_decay=decay)


def learning_rate(base: float, schedule: str, round_: int, rounds: int) -> float:
    """Return the learning rate of a round (from 1): constant, or half a cosine from `base` towards
    0 over the rounds.
    """
    if schedule == "constant":
        return base
    return base * 0.5 * (1 + math.cos(math.pi * (round_ - 1) / rounds))
