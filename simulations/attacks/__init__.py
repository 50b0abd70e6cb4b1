"""Attacks on a finished run: what does this plan leak? One attack a file, one closed registry.

An attack is a function `(plan, run, nodes, seed) → dict`: the plan that was run, the run's folder,
the node.yaml files that it was run with, and the seed of the attack's own draws. What it returns is
plain numbers, lists and dicts for JSON, and names no person's record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgraft.common.registry import Line, Registry

if TYPE_CHECKING:
    from fedgraft.common.plan.plan import Plan

Attack = Callable[["Plan", Path, Sequence[Path], int], dict[str, Any]]


@dataclass(frozen=True)
class AttackLine(Line):
    """An attack, and what must be known of it without importing it.

    Attributes:
        needs: what of a question it goes by, in words; empty: of any question.
    """

    needs: str = ""


_FOLDER = "fedgraft.simulations.attacks"
_LINES = {
    "loss-threshold": AttackLine(f"{_FOLDER}.loss_threshold:attack_by_loss"),
    "lira": AttackLine(f"{_FOLDER}.lira:attack_by_likelihood", "the probability of a class"),
    "inversion": AttackLine(f"{_FOLDER}.inversion:invert_gradients", "the class of a record"),
    "labels": AttackLine(f"{_FOLDER}.label_leakage:read_labels", "classes and their probabilities"),
    "properties": AttackLine(f"{_FOLDER}.properties:estimate_shares", "shares of classes"),
    "reconstruction": AttackLine(
        f"{_FOLDER}.records_in_sums:rebuild_records", "sums of features by class"
    ),
    "audit": AttackLine(f"{_FOLDER}.canaries:audit_mechanism", "canaries of every class"),
}
ATTACKS: Registry[Attack] = Registry("attacks", "attack", _LINES)


def explain_not_applying(name: str, question: str) -> str:
    """Return why an attack says nothing of a question; empty where it does."""
    line = ATTACKS.lines[name]
    needs = line.needs if isinstance(line, AttackLine) else ""
    if not needs or question == "classification":
        return ""
    return f"{name} goes by {needs}, and {question} has none; it would tell nothing of this plan"
