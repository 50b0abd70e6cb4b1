"""What one step on a few records gives away: the gradient that leaves a node, under its plan's own
privacy.

The worst case of an update: a round of one step on a small batch, by plain SGD, is the gradient
itself. Under sample-level privacy it is what `client/privacy/dp_sgd.py` makes of it: clipped for
each record, summed, noised.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.privacy.dp_sgd import Mechanism, Randomness, wrapped
from fedgraft.common.errors import UserError
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.plan import Plan
from fedgraft.simulations.attacks.target import Target, Unrecorded


def mechanism_of(target: Target, number: int) -> Mechanism | None:
    """The noisy step of node `number`, or None where its gradients leave as they are.

    Raises:
        UserError: the plan noises whole updates (mode local), whose steps nobody sees.
    """
    plan: Plan = target.plan
    if plan.privacy.mode == "local":
        raise UserError(
            "local: only noised sums of many steps leave a node",
            where="privacy.mode",
            remedy="leave this attack out, or study a plan with `mode: sample` or `mode: none`",
        )
    if plan.privacy.mode != "sample":
        return None
    data = target.nodes[number]
    return Unrecorded.open(data.node, plan, data.train).mechanism(plan)


def released(
    model: GraftedModel,
    inputs: Tensor,
    labels: Tensor,
    mechanism: Mechanism | None,
    randomness: Randomness,
) -> list[Tensor]:
    """The mean gradient over the records, as it leaves a node, in the order of
    `model.trainable_parameters()`.

    Args:
        inputs, labels: prepared inputs `(n, …)` and classes `(n,)`; each record is its own unit.
        mechanism: clips and noises it; None: nothing does. The noise is that of the node's step,
            whatever n is.
    """
    parameters = list(model.trainable_parameters().values())
    if mechanism is None:
        return list(gradient(model, inputs, labels))
    owners = torch.arange(len(labels)) if mechanism.unit == "patient" else None
    with wrapped(model, None, mechanism, randomness=randomness) as private:
        found = private.gradient(inputs, labels, owners)
    return [found[p] * mechanism.expected / len(labels) for p in parameters]


def gradient(
    model: GraftedModel, inputs: Tensor, labels: Tensor, *, graph: bool = False
) -> tuple[Tensor, ...]:
    """The mean gradient of cross-entropy; zero where a parameter takes no part.

    Args:
        graph: keep what is needed to differentiate it again, with respect to the inputs.
    """
    parameters = list(model.trainable_parameters().values())
    loss = F.cross_entropy(model(inputs), labels)
    found = torch.autograd.grad(loss, parameters, create_graph=graph, allow_unused=True)
    return tuple(
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
    )
