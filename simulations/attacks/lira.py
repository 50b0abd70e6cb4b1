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
candidate's own node's last update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.plan.plan import Plan
from fedgraft.simulations.attacks.candidates import Candidates, choose_candidates
from fedgraft.simulations.attacks.roc import summarize_scores, trace_roc
from fedgraft.simulations.attacks.shadows import (
    Released,
    count_affordable,
    draw_halves,
    train_shadow,
)
from fedgraft.simulations.attacks.target import Target, open_target

# shadows from which on each candidate has variances of its own (Carlini et al., section VI.A)
OWN_VARIANCE = 64
VIEWS = ("shared model", "node updates")
# so that no variance is zero
_LEAST_VARIANCE = 1e-12


def attack_by_likelihood(
    plan: Plan, run: Path, nodes: Sequence[Path], seed: int, *, shadows: int | None = None
) -> dict[str, Any]:
    """Attack a finished run. Return plain numbers: see
    `fedgraft.simulations.attacks.roc.summarize_scores`, once for each view.

    Args:
        shadows: how many shadow federations; even. Default: 16, and fewer where each costs much.

    Raises:
        UserError: no finished run there.
    """
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

    views = {}
    for number, name in enumerate(VIEWS):
        evidence = Evidence(seen[number], by_shadow[:, number], inside)
        views[name] = _measure_view(evidence, is_member, seed)
    return {"kind": "membership", "others_from": target.others, "shadows": shadows, "views": views}


# ── scores ────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, eq=False)
class Evidence:
    """What speaks for and against the membership of n candidates.

        evidence = Evidence(seen, by_shadow, inside)
        score_by_ratio(evidence)  # (n,), higher for members

    Attributes:
        seen: φ `(n,)` under the attacked model.
        by_shadow: φ `(k, n)` under each shadow.
        inside: `(k, n)` bool: which candidates each shadow was trained on.
    """

    seen: np.ndarray
    by_shadow: np.ndarray
    inside: np.ndarray


def score_by_ratio(evidence: Evidence) -> np.ndarray:
    """Return log N(φ; μ_in, σ_in²) − log N(φ; μ_out, σ_out²) of each candidate, `(n,)`."""
    with_record = _log_density(evidence, evidence.inside)
    without_record = _log_density(evidence, ~evidence.inside)
    return with_record - without_record


def score_above_others(evidence: Evidence) -> np.ndarray:
    """Return (φ − μ_out) / σ_out of each candidate, `(n,)`: from shadows alone that did not have
    it.
    """
    mean, variance = _moments(evidence.by_shadow, ~evidence.inside)
    return (evidence.seen - mean) / np.sqrt(variance)


def _log_density(evidence: Evidence, marked: np.ndarray) -> np.ndarray:
    """Return the logarithm of the normal density at φ over marked shadows, but for a constant."""
    mean, variance = _moments(evidence.by_shadow, marked)
    distance = (evidence.seen - mean) ** 2 / (2 * variance)
    return -0.5 * np.log(variance) - distance


def _moments(by_shadow: np.ndarray, marked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance `(n,)` over the shadows that are marked `(k, n)`; with few shadows
    one variance for all candidates.
    """
    count = marked.sum(0)
    mean = np.where(marked, by_shadow, 0.0).sum(0) / count
    distances = (by_shadow - mean) ** 2
    squares = np.where(marked, distances, 0.0).sum(0)
    if len(by_shadow) >= OWN_VARIANCE:
        return mean, squares / (count - 1) + _LEAST_VARIANCE
    freedom = max((count - 1).sum(), 1)
    variance = squares.sum() / freedom + _LEAST_VARIANCE
    return mean, np.full(len(mean), variance)


def _measure_view(evidence: Evidence, is_member: np.ndarray, seed: int) -> dict[str, Any]:
    """Return how well both scores tell members from others."""
    online = score_by_ratio(evidence)
    offline = score_above_others(evidence)
    numbers = summarize_scores(online[is_member], online[~is_member], seed=seed)
    offline_curve = trace_roc(offline[is_member], offline[~is_member])
    return numbers | {"offline_auc": offline_curve.area}


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


def scale_confidences(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log(p / (1 − p)) of each label's probability, `(n,)`, from logits `(n, classes)`:
    exact where p rounds to 1.
    """
    column = labels[:, None]
    of_label = logits.gather(1, column)
    of_others = logits.scatter(1, column, -torch.inf)
    return of_label.squeeze(1) - of_others.logsumexp(1)
