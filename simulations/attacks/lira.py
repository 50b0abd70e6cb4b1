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

from fedgraft.client.data.split import Split
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.plan.plan import Plan
from fedgraft.common.wire.layout import Layout
from fedgraft.common.wire.update import AdapterUpdate
from fedgraft.server.aggregation.plain_aggregation import PlainAggregation
from fedgraft.server.rounds import Round
from fedgraft.simulations.attacks.loss_threshold import alike
from fedgraft.simulations.attacks.roc import measured
from fedgraft.simulations.attacks.target import State, Target, open_target

SHADOWS = range(4, 17)  # at least, at most
# records that all shadows together take through a network of which nothing is frozen in front
PASSES = 120_000
# shadows from which on each candidate has variances of its own (Carlini et al., section VI.A)
OWN_VARIANCE = 64
VIEWS = ("shared model", "node updates")


@dataclass(frozen=True)
class Candidates:
    """One node's candidates: row numbers of its file, int64 `(n,)`, and which of them it trained
    on, `(n,)`.

    First the members, then as many non-members, of the same classes in the same order.
    """

    rows: np.ndarray
    member: np.ndarray


def lira(
    plan: Plan, run: Path, nodes: Sequence[Path], seed: int, *, shadows: int | None = None
) -> dict[str, Any]:
    """Attack a finished run. Returns plain numbers: see
    `fedgraft.simulations.attacks.roc.measured`, once for each view.

    Args:
        shadows: how many shadow federations; even. Default: 16, and fewer where each costs much.

    Raises:
        UserError: no finished run there.
    """
    target = open_target(plan, run, nodes)
    candidates = chosen_candidates(target, np.random.default_rng([seed, 1]))
    shadows = shadows or affordable(target)
    member = np.concatenate([each.member for each in candidates])
    updates = [target.update(number) for number in range(len(nodes))]
    seen = confidences(target, candidates, target.shared, updates)
    inside = halves(candidates, shadows, np.random.default_rng([seed, 2]))
    found = np.stack(
        [_shadow(target, candidates, inside[k], seed * 1000 + k + 1) for k in range(shadows)]
    )
    views = {}
    for at, name in enumerate(VIEWS):
        online = likelihood_ratio(seen[at], found[:, at], inside)
        offline = above_others(seen[at], found[:, at], inside)
        views[name] = measured(online[member], online[~member], seed=seed)
        views[name]["offline_auc"] = measured(
            offline[member], offline[~member], seed=seed, draws=1
        )["auc"]
    return {"kind": "membership", "others_from": target.others, "shadows": shadows, "views": views}


# ── scores ────────────────────────────────────────────────────────────────────────────────────────
def likelihood_ratio(seen: np.ndarray, shadows: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """log N(φ; μ_in, σ_in²) − log N(φ; μ_out, σ_out²) of each candidate, `(n,)`.

    Args:
        seen: φ `(n,)` under the attacked model.
        shadows: φ `(k, n)` under each shadow.
        inside: `(k, n)` bool: which candidates each shadow was trained on.
    """
    ratio = np.zeros(len(seen))
    for had, sign in ((inside, 1.0), (~inside, -1.0)):
        mean, variance = _moments(shadows, had)
        ratio += sign * (-0.5 * np.log(variance) - (seen - mean) ** 2 / (2 * variance))
    return ratio


def above_others(seen: np.ndarray, shadows: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(φ − μ_out) / σ_out of each candidate, `(n,)`: from shadows alone that did not have it.
    Arguments as above.
    """
    mean, variance = _moments(shadows, ~inside)
    return (seen - mean) / np.sqrt(variance)


def _moments(shadows: np.ndarray, had: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance `(n,)` over the shadows that `had` marks; with few shadows one variance for
    all candidates.
    """
    count = had.sum(0)
    mean = np.where(had, shadows, 0.0).sum(0) / count
    squares = np.where(had, (shadows - mean) ** 2, 0.0).sum(0)
    if len(shadows) < OWN_VARIANCE:
        return mean, np.full(len(mean), squares.sum() / max((count - 1).sum(), 1) + 1e-12)
    return mean, squares / (count - 1) + 1e-12


# ── shadows ───────────────────────────────────────────────────────────────────────────────────────
def chosen_candidates(target: Target, rng: np.random.Generator) -> list[Candidates]:
    """As many members as non-members at each node and of each class; as many as there are."""
    found = []
    for data in target.nodes:
        mine, theirs = alike(data, rng)
        sides: list[list[np.ndarray]] = [[np.empty(0, np.int64)], [np.empty(0, np.int64)]]
        labels = data.train.labels.numpy()[mine], data.others.labels.numpy()[theirs]
        for label in np.unique(labels[1]):
            pools = [
                rng.permutation(rows[of == label])
                for rows, of in zip((mine, theirs), labels, strict=True)
            ]
            for side, pool in zip(sides, pools, strict=True):
                side.append(pool[: min(map(len, pools))])
        members, others = (
            data.train.rows[np.concatenate(sides[0])],
            data.others.rows[np.concatenate(sides[1])],
        )
        found.append(
            Candidates(
                np.r_[members, others], np.repeat([True, False], [len(members), len(others)])
            )
        )
    return found


def halves(candidates: Sequence[Candidates], shadows: int, rng: np.random.Generator) -> np.ndarray:
    """`(shadows, n)` bool: which candidates each shadow trains on; each candidate is in exactly
    half of the shadows.

    Of a member and a non-member of one class at one node each shadow has one, by lot. So every
    shadow's node has as many records of each class as the attacked one.
    """
    columns = []
    for each in candidates:
        pairs = len(each.rows) // 2
        first = rng.permuted(
            np.tile(np.arange(shadows)[:, None] < shadows // 2, (1, pairs)), axis=0
        )
        columns += [first, ~first]
    return np.concatenate(columns, axis=1)


def affordable(target: Target) -> int:
    """How many shadows to train, an even number: the most where activations are kept, else what
    `PASSES` allows.
    """
    if frozen_prefix(target.model) is not None:
        return SHADOWS[-1]
    train = target.plan.train
    passes = sum(len(data.train) for data in target.nodes) * train.rounds * train.local_epochs
    return min(max(PASSES // passes // 2 * 2, SHADOWS[0]), SHADOWS[-1])


def _shadow(
    target: Target, candidates: Sequence[Candidates], inside: np.ndarray, seed: int
) -> np.ndarray:
    """φ `(2, n)` of all candidates under one shadow federation: its shared model, its nodes' last
    updates.
    """
    ends = np.cumsum([len(each.rows) for each in candidates])[:-1]
    splits = []
    for data, each, within in zip(target.nodes, candidates, np.split(inside, ends), strict=True):
        others = np.setdiff1d(data.train.rows, each.rows)
        rows = np.sort(np.r_[others, each.rows[within]])
        splits.append(Split(data.train.records, rows, data.train.preprocess))
    shared, updates = federated(target, splits, seed)
    return confidences(target, candidates, shared, updates)


def federated(target: Target, splits: Sequence[Split], seed: int) -> tuple[State, list[State]]:
    """The attacked plan on other rows: the shared adapter at the end, and what each node sends in
    the last round.

    In mode central it is without the server's noise: shadows are then less like the run, and the
    attack is weaker.
    """
    plan, state = target.plan, target.first
    layout, aggregation = Layout.of(state), PlainAggregation(plan)
    numbers = {data.node.name: number for number, data in enumerate(target.nodes)}
    for round_ in range(1, plan.train.rounds + 1):
        received = state
        names = aggregation.choose_cohort(list(numbers), round_)
        sent = {
            name: target.trained(numbers[name], splits[numbers[name]], received, round_, seed)
            for name in names
        }
        updates = {
            name: AdapterUpdate(
                round=round_,
                state=sent[name],
                examples=len(splits[numbers[name]]) if plan.privacy.mode == "none" else 1,
                steps=0,
                train_loss=None,
                seconds=0.0,
                received=None,
            )
            for name in names
        }
        state = aggregation.aggregate(Round(plan, round_, layout, received, names), updates)
    last = [
        sent[name]
        if name in sent
        else target.trained(number, splits[number], received, plan.train.rounds, seed)
        for name, number in numbers.items()
    ]
    return state, last


# ── what is asked of a model ──────────────────────────────────────────────────────────────────────
def confidences(
    target: Target, candidates: Sequence[Candidates], shared: State, updates: Sequence[State]
) -> np.ndarray:
    """φ `(2, n)` of all candidates: under the shared adapter, and each under its own node's."""
    found = []
    for number, (data, each, update) in enumerate(
        zip(target.nodes, candidates, updates, strict=True)
    ):
        split = Split(data.train.records, each.rows, data.train.preprocess)
        both = [
            logit_scaled(target.logits(number, state, split), split.labels)
            for state in (shared, update)
        ]
        found.append(torch.stack(both).double().numpy())
    return np.concatenate(found, axis=1)


def logit_scaled(logits: Tensor, labels: Tensor) -> Tensor:
    """log(p / (1 − p)) of each label's probability, `(n,)`, from logits `(n, classes)`: exact where
    p rounds to 1.
    """
    wanted = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return wanted.squeeze(1) - others.logsumexp(1)
