"""Membership by the loss: what was trained on is fitted better.

Yeom, Giacomelli, Fredrikson and Jha, "Privacy risk in machine learning: analyzing the connection to
overfitting" (IEEE CSF 2018), adversary 2: whoever has a loss below a threshold is called a member.
Here every threshold is tried (ROC). The attacker has a model's outputs and a person's record with
its label; no data of their own, no other model.

Under the shared model everyone's rows are members. Under a node's own update, as the server sees
it, that node's are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.common.plan.plan import Plan
from fedgraft.simulations.attacks.candidates import match_strata
from fedgraft.simulations.attacks.privacy_limit import limit_membership
from fedgraft.simulations.attacks.roc import summarize_scores
from fedgraft.simulations.attacks.solved_membership import attack_sums_by_loss
from fedgraft.simulations.attacks.target import State, Target, open_target


def attack_by_loss(plan: Plan, run: Path, nodes: Sequence[Path], seed: int) -> dict[str, Any]:
    """Attack a finished run. Return plain numbers: see
    `fedgraft.simulations.attacks.roc.summarize_scores`, once for each view.

    Raises:
        UserError: no finished run there, or a task without a loss for each record.
    """
    if plan.train.method == "closed-form":
        return attack_sums_by_loss(plan, run, nodes, seed)
    target = open_target(plan, run, nodes)
    updates = [target.update(number) for number in range(len(nodes))]
    shared = [target.shared] * len(nodes)
    views = {
        "shared model": _measure_view(target, shared, seed),
        "node updates": _measure_view(target, updates, seed),
    }
    return {
        "kind": "membership",
        "others_from": target.others,
        "limit": limit_membership(target),
        "views": views,
    }


def _measure_view(target: Target, states: Sequence[State], seed: int) -> dict[str, Any]:
    """Return how well −loss tells members from others, each under its own node's state.

    Classes are in equal shares on both sides.
    """
    rng = np.random.default_rng([seed, 1])
    members = []
    others = []
    for number, data in enumerate(target.nodes):
        state = states[number]
        strata_of_members = target.strata(data.train)
        strata_of_others = target.strata(data.others)
        mine, theirs = match_strata(strata_of_members, strata_of_others, rng)
        losses_of_members = target.losses(number, state, data.train)
        losses_of_others = target.losses(number, state, data.others)
        members.append(-losses_of_members[mine])
        others.append(-losses_of_others[theirs])
    return summarize_scores(np.concatenate(members), np.concatenate(others), seed=seed)
