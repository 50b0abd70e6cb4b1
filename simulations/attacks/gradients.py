"""What one step on a few records gives away: the gradient that leaves a node, under its plan's own
privacy.

The worst case of an update: a round of one step on a small batch, by plain SGD, is the gradient
itself. Under sample-level privacy it is what `client/privacy/dp_sgd.py` makes of it: clipped for
each record, summed, noised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgraft.client.privacy.dp_sgd import PrivateTraining, make_private
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.training.local_steps import loss_of
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.tasks.step_losses import clipped_losses
from fedgraft.common.tasks.task import Task
from fedgraft.simulations.attacks.target import Target
from fedgraft.simulations.attacks.unrecorded_budget import UnrecordedBudget


@dataclass(frozen=True)
class ObservedStep:
    """One step of a node, of which an attacker sees the gradient.

        step = observe_step(target, 0, Randomness(b"attack"))
        gradient = step.release(split.inputs(rows), split.labels[rows])

    Attributes:
        model: with the adapter that the step starts from.
        task: with the loss that the plan's steps minimise.
        mechanism: clips and noises the gradient; None: nothing does.
        randomness: of the noise.
    """

    model: GraftedModel
    task: Task
    mechanism: Mechanism | None
    randomness: Randomness

    def release(self, batch: Batch | Tensor, labels: Tensor) -> list[Tensor]:
        """Return the mean gradient over the records, as it leaves a node, in the order of
        `model.trainable_parameters()`.

        The noise is that of the node's step, whatever n is.

        Args:
            batch, labels: prepared inputs `(n, …)` and targets `(n,)`; each record is its own unit.
        """
        if self.mechanism is None:
            return self.gradient(batch, labels)
        owners = None
        if self.mechanism.unit == "patient":
            owners = torch.arange(len(labels))
        if self.task.losses is None:
            raise UserError(f"{self.task.name}: its loss has no parts by example")
        training = PrivateTraining(self.mechanism, self.task.losses)
        with make_private(self.model, None, training, self.randomness) as private:
            noised = private.gradient(batch, labels, owners)
        gradients = []
        for parameter in self.model.trainable_parameters().values():
            total = noised[parameter].cpu() * self.mechanism.expected
            gradients.append(total / len(labels))
        return gradients

    def gradient(
        self, batch: Batch | Tensor, labels: Tensor, *, graph: bool = False
    ) -> list[Tensor]:
        """Return the mean gradient of the loss, by nobody clipped; zero where a parameter takes no
        part.

        Args:
            graph: keep what is needed to differentiate it again, with respect to the inputs.
        """
        parameters = list(self.model.trainable_parameters().values())
        outputs = self.model(batch).cpu()
        loss = self.task.loss(outputs, labels)
        derivatives = torch.autograd.grad(loss, parameters, create_graph=graph, allow_unused=True)
        gradients = []
        for parameter, gradient in zip(parameters, derivatives, strict=True):
            own = torch.zeros_like(parameter) if gradient is None else gradient
            # what an attacker has is on the host, and can be differentiated from there
            gradients.append(own.cpu())
        return gradients


def observe_step(target: Target, number: int, randomness: Randomness) -> ObservedStep:
    """Return a step of node `number` at the model as it is loaded.

    Raises:
        UserError: the plan noises whole updates (mode local), whose steps nobody sees.
    """
    mechanism = mechanism_of(target, number)
    plan = target.plan
    loss = loss_of(plan, target.nodes[number].train.labels)
    task = replace(target.task, loss=loss, losses=clipped_losses(plan.task, plan.train))
    return ObservedStep(target.model, task, mechanism, randomness)


def mechanism_of(target: Target, number: int) -> Mechanism | None:
    """Return the noisy step of node `number`, or None where its gradients leave as they are. Raise
    as `observe_step`.
    """
    privacy = target.plan.privacy
    if not privacy.at_node:
        return None
    if privacy.on_updates:
        raise UserError(
            f"{privacy.mode}: only noised sums of many steps leave a node",
            where="privacy.mode",
            remedy="leave this attack out, or study a plan with `mode: sample` or `mode: none`",
        )
    data = target.nodes[number]
    return UnrecordedBudget.open(data.node, target.plan, data.train).mechanism(target.plan)
