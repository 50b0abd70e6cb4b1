"""What a step takes is counted before it is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedgraft.client.step_memory import LiveBytes, count_step
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.meta_walk import META
from tests.vision_transformer import make_plan, open_backbone, open_model

IMAGES = Batch({"x": torch.zeros(4, 3, 64, 64)})
SAMPLE = {"privacy.mode": "sample", "privacy.target_epsilon": 3.0, "privacy.delta": 1e-5}


def test_bytes_are_counted_while_they_live() -> None:
    """By hand: 100 rows of 50 float32 values, ten to the head, in a chain of three layers."""
    chain = nn.Sequential(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10)).to(META)
    x = torch.empty(100, 50, device=META)
    with LiveBytes(chain) as live, torch.no_grad():
        y = chain(x)
        # the layer before it is gone when the next has run
        assert live.peak == 2 * 100 * 50 * 4
        assert live.now == 100 * 10 * 4
        del y
        assert live.now == 0
    with LiveBytes(chain) as live:
        # what the two products need on the way back stays: ReLU's output is the second's input
        y = chain(x)
        assert live.now == (2 * 100 * 50 + 100 * 10) * 4 - 100 * 50 * 4
        del y
        assert live.now == 0


@pytest.mark.parametrize("changes", [{}, SAMPLE], ids=["plain", "private"])
def test_the_model_is_as_it_was_and_weights_are_counted(changes: dict[str, Any]) -> None:
    plan = make_plan(**changes)
    model = open_model(plan)
    found = count_step(model, plan, IMAGES)
    assert model.device.type == "cpu"
    assert all(parameter.grad is None for parameter in model.parameters())
    own = sum(tensor.nbytes for tensor in open_backbone(None).net.state_dict().values())
    assert found.weights == own
    values = sum(parameter.numel() for parameter in model.trainable_parameters().values())
    assert found.trained == 16 * values
    assert found.step > 0


def test_a_frozen_prefix_is_counted_by_itself() -> None:
    """A network that is trained at its end alone needs little for the way back."""
    plan = make_plan(**{"adapter.targets": "last-block"})
    model = open_model(plan)
    whole = open_model(make_plan())
    found = count_step(model, plan, IMAGES)
    assert found.frozen_pass > 0
    assert found.step < 0.3 * count_step(whole, make_plan(), IMAGES).step


def test_fewer_bits_are_fewer_bytes_and_no_more_of_a_step() -> None:
    """Weights that are made for every layer and stay until the way back."""
    found = {}
    for kind in (None, "int8"):
        plan = make_plan(**{"backbone.quantization": kind})
        model = open_model(plan)
        found[kind] = count_step(model, plan, IMAGES)
    assert found["int8"].weights < 0.55 * found[None].weights
    # one layer's weight at a time
    largest = 4 * 768 * 3072
    assert found["int8"].step - found[None].step < 3 * largest
