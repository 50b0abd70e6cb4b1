"""The score of LiRA: is this value as values are of models that had the record, or as those that
had not?

Carlini et al. 2022, "Membership inference attacks from first principles" (IEEE S&P), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.simulations.attacks.roc import summarize_scores, trace_roc

# shadows from which on each candidate has variances of its own (Carlini et al., section VI.A)
OWN_VARIANCE = 64
# so that no variance is zero
_LEAST_VARIANCE = 1e-12


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


def measure_view(evidence: Evidence, is_member: np.ndarray, seed: int) -> dict[str, Any]:
    """Return how well both scores tell members from others."""
    online = score_by_ratio(evidence)
    offline = score_above_others(evidence)
    numbers = summarize_scores(online[is_member], online[~is_member], seed=seed)
    offline_curve = trace_roc(offline[is_member], offline[~is_member])
    return numbers | {"offline_auc": offline_curve.area}


def measure_views(
    names: Sequence[str],
    seen: np.ndarray,
    by_shadow: np.ndarray,
    inside: np.ndarray,
    is_member: np.ndarray,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Return the same for each view of an attacker, by its name.

    Args:
        seen: of the attacked model, `(views, n)`.
        by_shadow: of the shadows, `(shadows, views, n)`.
        inside: which shadow has which candidate, bool `(shadows, n)`.
    """
    views = {}
    for number, name in enumerate(names):
        evidence = Evidence(seen[number], by_shadow[:, number], inside)
        views[name] = measure_view(evidence, is_member, seed)
    return views


def scale_confidences(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log(p / (1 − p)) of each label's probability, `(n,)`, from logits `(n, classes)`:
    exact where p rounds to 1.
    """
    column = labels[:, None]
    of_label = logits.gather(1, column)
    of_others = logits.scatter(1, column, -torch.inf)
    return of_label.squeeze(1) - of_others.logsumexp(1)
