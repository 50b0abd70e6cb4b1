"""A plan that trains LoRA on a vision transformer with random weights, and its model."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.model.assembly import plan_model
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import amended, plan_from_json

NAME = "vit_b_32"
SIDE = 64
PLAN: dict[str, Any] = {
    "name": "transformer",
    "task": {"kind": "image-classification", "classes": ["no", "yes"]},
    "backbone": {"name": NAME, "image_size": SIDE},
    "adapter": {"method": "lora", "rank": 2},
}


def make_plan(**changes: Any) -> Plan:
    """Return the plan with keys changed, such as `**{"train.batch_size": 4}`."""
    plan = plan_from_json(json.dumps(PLAN))
    return amended(plan, [f"{key}={json.dumps(value)}" for key, value in changes.items()])


@cache
def open_backbone(quantization: str | None) -> Backbone:
    """Return its backbone, one for all tests of a process: nothing writes it."""
    return load_backbone(NAME, image_size=SIDE, quantization=quantization)


def open_model(plan: Plan) -> GraftedModel:
    """Return a plan's model."""
    return plan_model(open_backbone(plan.backbone.quantization), plan)
