"""What training by steps minimises: a question's loss of each example, turned to the rare and the
hard as the plan says. Only what the plan states is in here, no record of anybody's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.plan.train_section import TrainSection
from fedgraft.common.tasks import TASKS

# outputs and targets → the loss of each example `(n,)`
Losses = Callable[[Tensor, Tensor], Tensor]
# (1 − p)^γ with γ < 1 has no derivative at p = 1
LEAST_DOUBT = 1e-12


def clipped_losses(task: TaskSection, train: TrainSection) -> Losses | None:
    """Return a plan's loss by example for steps that clip its gradient, weighted as it states; None
    where examples do not part.

    Weights are divided by the largest: one above 1 would be clipped away, and all examples whose
    gradients reach the bound would count alike again.
    """
    losses = losses_as_named(task, train)
    weights = stated_weights(train)
    if losses is None or weights is None:
        return losses
    return weigh(losses, weights / weights.max())


def losses_as_named(task: TaskSection, train: TrainSection) -> Losses | None:
    """Return the loss by example that `train.loss` names, every class with weight 1."""
    losses = TASKS[task.question].losses
    if losses is None or train.loss != "focal":
        return losses
    return partial(focal_losses, losses, train.focal.gamma)


def focal_losses(losses: Losses, gamma: float, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return (1 − p)^γ · −log p of each example `(n,)`, p what the model gives to the true class:
    what it is sure of counts little (Lin et al. 2017, "Focal loss for dense object detection",
    eq. 4; with class weights eq. 5).

    Args:
        losses: cross-entropies, from which p is exp(−loss).
    """
    entropies = losses(outputs, targets)
    doubt = (-torch.expm1(-entropies)).clamp(min=LEAST_DOUBT)
    return doubt**gamma * entropies


def stated_weights(train: TrainSection) -> Tensor | None:
    """Return the weight of each class that the plan states `(classes,)`; None: it states none."""
    if isinstance(train.class_weights, str):
        return None
    return torch.tensor(train.class_weights)


def inverse_shares(labels: Tensor, classes: int) -> Tensor:
    """Return n / (classes that are there · n_k) for each class k, `(classes,)`: every class that a
    node has weighs as much as any other of its classes, and an example 1 on average.

    A class without examples has weight 0; no example asks for it.
    """
    counts = torch.bincount(labels, minlength=classes)
    present = int((counts > 0).sum())
    weights = len(labels) / (max(present, 1) * counts.clamp(min=1))
    return torch.where(counts > 0, weights, 0.0)


def weigh(losses: Losses, weights: Tensor) -> Losses:
    """Return losses times the weight of each example's class.

    The mean of a batch is taken over its examples, not over their weights: with a rare class the
    latter would make the step of every batch depend on whether one of it is there.
    """
    return lambda outputs, targets: losses(outputs, targets) * weights.to(targets.device)[targets]
