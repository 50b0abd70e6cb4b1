"""Stages that are run again on the way back: less is kept, and the same bits come out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedgraft.client.open_on_card import probe_targets
from fedgraft.client.privacy.clipping_engine import losses_of
from fedgraft.client.privacy.dp_sgd import PrivateTraining, make_private
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.step_memory import count_step
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.gradient_checkpointing import checkpoint_gradients
from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.randomness import Randomness
from tests import vision_transformer
from tests.vision_transformer import open_model


def make_plan(**changes: Any) -> Plan:
    again: dict[str, Any] = {"train.gradient_checkpointing": True, "train.batch_size": 4}
    return vision_transformer.make_plan(**(again | changes))


def gradients(plan: Plan, images: Tensor, *, private: bool) -> dict[str, Tensor]:
    """Return the gradient of a step, plain or clipped, by name."""
    model = open_model(plan)
    for number, parameter in enumerate(model.trainable_parameters().values()):
        draw = torch.Generator().manual_seed(number)
        parameter.data.add_(torch.randn(parameter.shape, generator=draw), alpha=0.02)
    targets = probe_targets(plan, len(images))
    if not private:
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        return {n: p.grad for n, p in model.trainable_parameters().items() if p.grad is not None}
    mechanism = Mechanism(0.0, 1.0, 1, 1.0, 1.0, "example", plan.privacy.grad_sample_mode)
    training = PrivateTraining(mechanism, losses_of(plan.task, plan.train))
    with make_private(model, None, training, Randomness(b"probe")) as engine:
        # a second step would meet what the first has left
        engine.gradient(images, targets)
        found = engine.gradient(images, targets)
    return {n: found[p] for n, p in model.trainable_parameters().items()}


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
def test_the_gradient_is_the_same_bit_for_bit(private: bool) -> None:
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    again = gradients(make_plan(), images, private=private)
    kept = gradients(make_plan(**{"train.gradient_checkpointing": False}), images, private=private)
    assert again.keys() == kept.keys()
    assert len(again) > 10
    for name, gradient in again.items():
        assert torch.equal(gradient, kept[name]), name


def test_so_is_that_of_the_part_behind_a_frozen_prefix() -> None:
    plan = make_plan(**{"adapter.targets": "last-block"})
    model = open_model(plan)
    prefix = frozen_prefix(model)
    assert prefix is not None
    assert prefix.tail.run_step is model.run_step


def test_less_is_kept() -> None:
    """A plan that says so, and stages that keep everything all the same."""
    images = torch.zeros(4, 3, 64, 64)
    found: dict[bool, int] = {}
    for again in (True, False):
        plan = make_plan(**{"train.gradient_checkpointing": again})
        model = open_model(plan)
        found[again] = count_step(model, plan, Batch({"x": images})).step
    assert found[True] < 0.35 * found[False]


def test_ghost_clipping_is_refused_in_words() -> None:
    """Opacus counts a layer each time that it runs."""
    plan = make_plan(
        **{
            "privacy.mode": "sample",
            "privacy.target_epsilon": 3.0,
            "privacy.delta": 1e-5,
            "privacy.grad_sample_mode": "ghost",
        }
    )
    with pytest.raises(Refused, match="run again on the way back"):
        gradients(plan, torch.zeros(2, 3, 64, 64), private=True)


def test_a_network_whose_order_is_not_known_is_refused_in_words() -> None:
    """A plan that asks for less memory, and silently gets none."""
    plan = make_plan()
    model = open_model(plan)
    # of several slices a record: what lies between stages is no longer a row a record
    model.slices = 4
    with pytest.raises(UserError, match="not known") as told:
        checkpoint_gradients(model)
    assert "batch_size" in str(told.value.remedy)
