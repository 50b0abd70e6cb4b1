"""A plan's model brought to a card, and how many examples it trains on at once there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fedgraft.client.privacy.clipping_engine import losses_of
from fedgraft.client.privacy.dp_sgd import PrivateTraining, make_private
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.training.local_steps import loss_of
from fedgraft.client.training.step_block import choose_block, keep_block
from fedgraft.common.errors import Code, Refused
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.material import Preparation
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.model.assembly import bring_to
from fedgraft.common.model.devices import describe_device
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.plan.phases import rounds_for
from fedgraft.common.plan.plan_file import agreement_hash
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.tasks import TASKS


def open_on_card(
    model: GraftedModel,
    device: torch.device,
    plan: Agreement,
    store: Path,
    preparation: Preparation,
    example: Batch,
) -> int | None:
    """Bring a model to a card, in place; return how many examples it trains on at once there, None
    where it takes no steps.

    Args:
        store: the node's, where the block is kept.
        preparation: of inputs.
        example: one prepared input, of which the shape alone is looked at.

    Raises:
        Refused: steps under differential privacy on a device without float64, or a card with no
            room for one example.
    """
    private = plan.privacy.mode == "sample" and bool(rounds_for(plan.train, "steps"))
    if private and device.type == "mps":
        what = "steps under privacy need float64, which mps has not; write `device: cpu`"
        raise Refused(Code.SETUP, what)
    bring_to(model, device, plan)
    if not rounds_for(plan.train, "steps"):
        return None
    step = take_private_step if private else take_step

    def try_block(count: int) -> None:
        probes = draw_probes(plan.task.material, preparation, example, count)
        step(model, plan, probes, probe_targets(plan, count))

    identity = agreement_hash(plan)
    choose = partial(choose_block, plan.train.batch_size, try_block)
    return keep_block(store, identity, describe_device(device), choose)


def probe_targets(plan: Agreement, count: int) -> Tensor:
    """Return made-up targets `(count, …)`."""
    two = TASKS[plan.task.question].probes(plan.task)
    return two[torch.arange(count) % len(two)]


def take_step(model: GraftedModel, plan: Agreement, inputs: Batch, targets: Tensor) -> None:
    """Compute the gradient of a step and forget it."""
    outputs = model(inputs)
    try:
        loss_of(plan, targets)(outputs, targets.to(outputs.device)).backward()
    finally:
        for parameter in model.parameters():
            parameter.grad = None


def take_private_step(model: GraftedModel, plan: Agreement, inputs: Batch, targets: Tensor) -> None:
    """Compute the clipped sum of a step and forget it."""
    mechanism = Mechanism(0.0, 1.0, 1, 1.0, 1.0, "example", plan.privacy.grad_sample_mode)
    training = PrivateTraining(mechanism, losses_of(plan.task, plan.train))
    with make_private(model, None, training, Randomness(b"probe")) as private:
        private.gradient(inputs, targets)
