"""Attacks on a finished run: what does this plan leak? One attack a file, one closed registry.

An attack is a function `(plan, run, nodes, seed) → dict`: the plan that was run, the run's folder,
the node.yaml files that it was run with, and the seed of the attack's own draws. What it returns is
plain numbers, lists and dicts for JSON, and names no person's record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedgraft.common.plan.plan import Plan
from fedgraft.simulations.attacks import (
    canaries,
    inversion,
    labels,
    lira,
    loss_threshold,
    properties,
)

Attack = Callable[[Plan, Path, Sequence[Path], int], dict[str, Any]]

ATTACKS: dict[str, Attack] = {
    "loss-threshold": loss_threshold.loss_threshold,
    "lira": lira.lira,
    "inversion": inversion.inversion,
    "labels": labels.labels,
    "properties": properties.properties,
    "audit": canaries.canaries,
}

__all__ = ["ATTACKS", "Attack"]
