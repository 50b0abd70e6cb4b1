"""Attacks on a finished run: what does this plan leak? One attack a file, one closed registry.

An attack is a function `(plan, run, nodes, seed) → dict`: the plan that was run, the run's folder, the node.yaml files
that it was run with, and the seed of the attack's own draws. What it returns is plain numbers, lists and dicts
for JSON, and names no person's record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.plan import Plan
from simulations.attacks.canaries import canaries
from simulations.attacks.inversion import inversion
from simulations.attacks.labels import labels
from simulations.attacks.lira import lira
from simulations.attacks.loss_threshold import loss_threshold
from simulations.attacks.properties import properties

Attack = Callable[[Plan, Path, Sequence[Path], int], dict[str, Any]]

ATTACKS: dict[str, Attack] = {
    "loss-threshold": loss_threshold,
    "lira": lira,
    "inversion": inversion,
    "labels": labels,
    "properties": properties,
    "audit": canaries,
}

__all__ = ["ATTACKS", "Attack"]
