"""Attacks on a finished run: what does this plan leak? One attack a file, one closed registry.

An attack is a function `(plan, run, nodes, seed) → dict`: the plan that was run, the run's folder,
the node.yaml files that it was run with, and the seed of the attack's own draws. What it returns is
plain numbers, lists and dicts for JSON, and names no person's record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgraft.common.registry import Registry

if TYPE_CHECKING:
    from fedgraft.common.plan.plan import Plan

Attack = Callable[["Plan", Path, Sequence[Path], int], dict[str, Any]]

ATTACKS: Registry[Attack] = Registry(
    "attacks",
    "attack",
    {
        "loss-threshold": "fedgraft.simulations.attacks.loss_threshold:attack_by_loss",
        "lira": "fedgraft.simulations.attacks.lira:attack_by_likelihood",
        "inversion": "fedgraft.simulations.attacks.inversion:invert_gradients",
        "labels": "fedgraft.simulations.attacks.label_leakage:read_labels",
        "properties": "fedgraft.simulations.attacks.properties:estimate_shares",
        "reconstruction": "fedgraft.simulations.attacks.records_in_sums:rebuild_records",
        "audit": "fedgraft.simulations.attacks.canaries:audit_mechanism",
    },
)
