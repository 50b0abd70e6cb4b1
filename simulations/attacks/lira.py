"""Membership by likelihood ratio: is this model as models are that had the record, or as those that
had not?

LiRA, Carlini et al. 2022, "Membership inference attacks from first principles" (IEEE S&P),
algorithm 1. Shadow federations like the attacked one, with the same plan and public start, each on
a half of the candidates, by lot; of each candidate the logit-scaled confidence φ = log(p / (1 − p))
of its label, as a normal distribution over shadows that had it and over those that had not; the
score is the ratio of their densities at the attacked model's φ (online), or how far φ lies above
what models without the record give (offline).

The attacker is as strong as the definition of differential privacy has them: they know every record
but whether each candidate was in. What is asked for is the shared model's φ, and that of the
candidate's own node's last update. Where the head was solved from sums, a shadow is a solution of
other sums, see `solved_membership.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedgraft.common.plan.plan import Plan
from fedgraft.simulations.attacks.candidates import Candidates, choose_candidates
from fedgraft.simulations.attacks.likelihood import measure_views, scale_confidences
from fedgraft.simulations.attacks.privacy_limit import limit_membership
from fedgraft.simulations.attacks.shadows import (
    Released,
    count_affordable,
    draw_halves,
    train_shadow,
)
from fedgraft.simulations.attacks.solved_membership import attack_sums_by_likelihood
from fedgraft.simulations.attacks.target import Target, open_target

VIEWS = ("shared model", "node updates")


def attack_by_likelihood(
    plan: Plan, run: Path, nodes: Sequence[Path], seed: int, *, shadows: int | None = None
) -> dict[str, Any]:
    """Attack a finished run. Return plain numbers: see
    `fedgraft.simulations.attacks.roc.summarize_scores`, once for each view.

    Args:
        shadows: how many shadow federations; even. Default: 256 of sums, 16 of steps, and fewer
            where each costs much.

    Raises:
        UserError: no finished run there.
    """
    if plan.train.method == "closed-form":
        return attack_sums_by_likelihood(plan, run, nodes, seed, shadows=shadows)
    target = open_target(plan, run, nodes)
    rng = np.random.default_rng([seed, 1])
    candidates = choose_candidates(target, rng)
    is_member = np.concatenate([each.is_member for each in candidates])
    updates = [target.update(number) for number in range(len(nodes))]
    seen = measure_confidences(target, candidates, Released(target.shared, updates))

    shadows = shadows or count_affordable(target)
    rng = np.random.default_rng([seed, 2])
    inside = draw_halves(candidates, shadows, rng)
    confidences = []
    for number, chosen in enumerate(inside, start=1):
        released = train_shadow(target, candidates, chosen, seed * 1000 + number)
        confidences.append(measure_confidences(target, candidates, released))
    by_shadow = np.stack(confidences)
    return {
        "kind": "membership",
        "others_from": target.others,
        "shadows": shadows,
        "limit": limit_membership(target),
        "views": measure_views(VIEWS, seen, by_shadow, inside, is_member, seed),
    }


# ── what is asked of a model ──────────────────────────────────────────────────────────────────────
def measure_confidences(
    target: Target, candidates: Sequence[Candidates], released: Released
) -> np.ndarray:
    """Return φ `(2, n)` of all candidates: under the shared adapter, and each under its own
    node's.
    """
    by_node = []
    for number, each in enumerate(candidates):
        split = target.nodes[number].select(each.rows)
        views = []
        for state in (released.shared, released.updates[number]):
            outputs = target.outputs(number, state, split)
            views.append(scale_confidences(outputs, split.labels))
        both = torch.stack(views)
        by_node.append(both.double().numpy())
    return np.concatenate(by_node, axis=1)
