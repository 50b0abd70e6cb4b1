"""What a run needs before its first message."""

from __future__ import annotations

from dataclasses import dataclass

from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.plan.plan import Plan


@dataclass(frozen=True)
class Federation:
    """A plan, its backbone, and how long to wait for whom.

        federation = Federation(plan, plan_backbone(plan, folder), expected=8)
        result = federate(grid, federation, RunFolder.open_new(out, plan))

    Attributes:
        expected: nodes to wait for.
        patience: seconds to wait for them.
        seeded_noise: central noise that can be repeated: for simulations only.
    """

    plan: Plan
    backbone: Backbone
    expected: int
    patience: float = 120.0
    seeded_noise: bool = False
