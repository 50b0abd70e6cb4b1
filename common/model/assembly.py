"""The plan's backbone, and the plan's adapter grafted onto it: the same on both sides of the
wire.
"""

from __future__ import annotations

from pathlib import Path

from fedgraft.common.backbones.backbone import Backbone, backbone_state, load_backbone
from fedgraft.common.model.grafted_model import GraftedModel, graft
from fedgraft.common.plan.plan import WEIGHT_FILES, Plan
from fedgraft.common.plan.plan_file import resolve


def plan_backbone(plan: Plan, base: Path, weights: str | None = None) -> Backbone:
    """Load the backbone that a plan names.

    Args:
        base: folder of the plan's file; a weights file is looked up beside it first.
        weights: where the file lies on this machine, if not where the plan says.

    Raises:
        UserError: weights that are missing, damaged or of another network; says what to do.
    """
    wanted = plan.backbone
    source: str | Path | None = weights or wanted.weights
    if (
        weights is None
        and wanted.weights is not None
        and wanted.weights.lower().endswith(WEIGHT_FILES)
    ):
        remedy = "copy the file there, or name another as backbone.weights"
        if plan.pretrain is not None:
            remedy = f"make it: fedgraft pretrain {plan.name}"
        source = resolve(wanted.weights, base, remedy=remedy)
    return load_backbone(
        wanted.name,
        weights=source,
        image_size=wanted.image_size,
        random=wanted.random,
        hidden=wanted.hidden,
        columns=plan.task.inputs,
        seed=plan.seed,
        fingerprint=wanted.fingerprint,
    )


def plan_model(backbone: Backbone, plan: Plan) -> GraftedModel:
    """The plan's adapter and a fresh head on a backbone, with the same initial values on every
    side.
    """
    adapter = plan.adapter
    return graft(
        backbone,
        method=adapter.method,
        classes=len(plan.task.classes),
        rank=adapter.rank,
        alpha=adapter.alpha,
        width=adapter.width,
        targets=adapter.targets,
        seed=plan.seed,
        freeze_a=plan.aggregate.lora_aggregation == "freeze-a",
    )


def backbone_bytes(backbone: Backbone) -> int:
    """Size of the backbone's tensors, buffers included."""
    return sum(tensor.nbytes for tensor in backbone_state(backbone).values())


def full_model_bytes(backbone: Backbone, classes: int) -> int:
    """What full fine-tuning would send each way: all parameters of the backbone and a head, no
    buffers.
    """
    head = 4 * classes * (backbone.features + 1)
    return head + sum(parameter.nbytes for parameter in backbone.net.parameters())
