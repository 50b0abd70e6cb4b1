"""Membership where the head was solved from sums: by the loss, and by likelihood ratio (LiRA).

A shadow is a solution of the sums of other records: what all shadows share is summed once, and a
half of the candidates is added to it. So 256 of them take seconds. Under differential privacy each
has noise of its own.

Two things are looked at: the shared head, and the sums that a record's own node sent. A shadow's
head gives the confidence of the record's label, as in LiRA. Of a node's sums without noise it is
the record's leverage φᵀ(Σφφᵀ)⁻¹φ that tells: of a record that is in it is at most 1, and any that
the node's records do not span has no bound. Of sums with noise it is their inner product with what
the record would add to them, which is all that Gaussian noise leaves to be known of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from fedgraft.client.sum_round import sum_privately
from fedgraft.common.model.solve_head import noisy_form_of, releases_products, rounding_of
from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.discrete_noise import draw_discrete_gaussian
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.statistics.gram_sums import GramSums
from fedgraft.common.statistics.noisy_sums import (
    COUNT_STEP,
    SCALE,
    NoisySums,
    round_within,
    sigma_of,
)
from fedgraft.simulations.attacks.candidates import Candidates, choose_candidates, match_strata
from fedgraft.simulations.attacks.likelihood import measure_views, scale_confidences
from fedgraft.simulations.attacks.privacy_limit import limit_membership
from fedgraft.simulations.attacks.roc import summarize_scores
from fedgraft.simulations.attacks.shadows import draw_halves
from fedgraft.simulations.attacks.solved_target import (
    FeatureRows,
    SolvedTarget,
    Sums,
    open_solved,
)
from fedgraft.simulations.attacks.target import State
from fedgraft.simulations.attacks.unrecorded_budget import UnrecordedBudget

SHADOWS = 256
VIEWS = ("shared model", "node sums")
# of the Gram matrix's trace, added to its diagonal: above rounding, below any feature
_LEAST_EIGENVALUE = 1e-12


# ── by the loss ───────────────────────────────────────────────────────────────────────────────────
def attack_sums_by_loss(plan: Plan, run: Path, nodes: Sequence[Path], seed: int) -> dict[str, Any]:
    """Attack a finished run as `loss_threshold.attack_by_loss` does: under the shared head, and
    under the head that a node's own sums give.
    """
    target = open_solved(plan, run, nodes)
    sums = sum_as_sent(target)
    own = [target.solve([each]) for each in sums]
    shared = [target.run.shared] * len(nodes)
    views = {}
    for name, heads in zip(VIEWS, (shared, own), strict=True):
        views[name] = _measure_losses(target, heads, seed)
    return {
        "kind": "membership",
        "others_from": target.run.others,
        "limit": limit_membership(target.run),
        "views": views,
    }


def sum_as_sent(target: SolvedTarget) -> list[Sums]:
    """Return the sums that each node sent, made again."""
    sums = []
    for number, data in enumerate(target.run.nodes):
        sums.append(target.sum_rows(number, data.train.rows, target.plan.seed))
    return sums


def _measure_losses(target: SolvedTarget, heads: Sequence[State], seed: int) -> dict[str, Any]:
    """Return how well −loss tells members from others, each under its own node's head; classes in
    equal shares on both sides.
    """
    rng = np.random.default_rng([seed, 1])
    members = []
    others = []
    for data, known, head in zip(target.run.nodes, target.known, heads, strict=True):
        strata_of_members = target.run.strata(data.train)
        strata_of_others = target.run.strata(data.others)
        mine, theirs = match_strata(strata_of_members, strata_of_others, rng)
        examples_of_members = known.rows_at(data.train.rows[mine])
        examples_of_others = known.rows_at(data.others.rows[theirs])
        members.append(-target.losses(head, examples_of_members))
        others.append(-target.losses(head, examples_of_others))
    return summarize_scores(np.concatenate(members), np.concatenate(others), seed=seed)


# ── by likelihood ratio ───────────────────────────────────────────────────────────────────────────
def attack_sums_by_likelihood(
    plan: Plan, run: Path, nodes: Sequence[Path], seed: int, *, shadows: int | None = None
) -> dict[str, Any]:
    """Attack a finished run as `lira.attack_by_likelihood` does.

    Args:
        shadows: how many; even. Default: 256.
    """
    target = open_solved(plan, run, nodes)
    candidates = choose_candidates(target.run, np.random.default_rng([seed, 1]))
    is_member = np.concatenate([each.is_member for each in candidates])
    asked = AskedRecords.of(target, candidates)
    seen = asked.weigh(target.run.shared, sum_as_sent(target))

    shadows = shadows or SHADOWS
    inside = draw_halves(candidates, shadows, np.random.default_rng([seed, 2]))
    world = ShadowWorld.of(target, candidates, seed)
    by_shadow = []
    for number, chosen in enumerate(inside):
        sums = world.sum_shadow(number, chosen)
        by_shadow.append(asked.weigh(target.solve(sums), sums))
    stacked = np.stack(by_shadow)
    return {
        "kind": "membership",
        "others_from": target.run.others,
        "shadows": shadows,
        "limit": limit_membership(target.run),
        "views": measure_views(VIEWS, seen, stacked, inside, is_member, seed),
    }


@dataclass(frozen=True, eq=False)
class ShadowWorld:
    """What shadows are made of: sums that all of them share, and noise of each one's own.

        world = ShadowWorld.of(target, candidates, seed=0)
        sums = world.sum_shadow(0, inside[0])

    Attributes:
        target: the attacked run.
        candidates: at each node.
        always: sums over each node's rows that are no candidates, without noise; None where a
            patient's records share one weight, and nothing can be added.
        sigma: of the noise at each node; empty: there is none.
        seed: of the noise.
    """

    target: SolvedTarget
    candidates: Sequence[Candidates]
    always: Sequence[Sums] | None
    sigma: Sequence[int]
    seed: int

    @classmethod
    def of(cls, target: SolvedTarget, candidates: Sequence[Candidates], seed: int) -> ShadowWorld:
        """Return the world around these candidates."""
        always = []
        for number, each in enumerate(candidates):
            rows = np.setdiff1d(target.run.nodes[number].train.rows, each.rows)
            always.append(_sum_silently(target, number, rows))
        sigmas = []
        if target.plan.privacy.at_node:
            sigmas = [_sigma_at(target, number) for number in range(len(candidates))]
        parts = None if target.plan.privacy.unit == "patient" else always
        return cls(target, candidates, parts, sigmas, seed)

    def sum_shadow(self, shadow: int, inside: np.ndarray) -> list[Sums]:
        """Return what each node of a shadow sends.

        Args:
            inside: which candidates it has, bool `(n,)`.
        """
        ends = np.cumsum([len(each.rows) for each in self.candidates])
        by_node = np.split(inside, ends[:-1])
        sums = []
        for number, chosen in enumerate(by_node):
            total = self._sum_at(number, self.candidates[number].rows[chosen])
            if isinstance(total, NoisySums):
                randomness = Randomness(f"shadows/{self.seed}/{shadow}/{number}".encode())
                draw = partial(draw_discrete_gaussian, randomness=randomness)
                total = total.with_noise(self.sigma[number], draw)
            sums.append(total)
        return sums

    def _sum_at(self, number: int, chosen: np.ndarray) -> Sums:
        if self.always is not None:
            added = _sum_silently(self.target, number, chosen)
            return self.always[number] + added  # type: ignore[operator]
        rows = self.target.run.nodes[number].train.rows
        always = np.setdiff1d(rows, self.candidates[number].rows)
        return _sum_silently(self.target, number, np.union1d(always, chosen))


def _sum_silently(target: SolvedTarget, number: int, rows: np.ndarray) -> Sums:
    """Return a node's sums over some rows of its file, without noise."""
    if not target.plan.privacy.at_node:
        return target.sum_rows(number, rows, target.plan.seed)
    data = target.run.nodes[number]
    examples = target.known[number].rows_at(rows)
    task = target.open_task(number, data.select(rows), examples, target.plan.seed)
    patients = None if task.budget is None else task.budget.patients
    return sum_privately(task, patients)


def _sigma_at(target: SolvedTarget, number: int) -> int:
    data = target.run.nodes[number]
    budget = UnrecordedBudget.open(data.node, target.plan, data.train)
    noise_multiplier = budget.mechanism(target.plan).noise_multiplier
    return sigma_of(noise_multiplier, products=releases_products(target.plan))


# ── what is asked of sums ─────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, eq=False)
class AskedRecords:
    """The candidates' features, by node, and what sums say of each.

        asked = AskedRecords.of(target, candidates)
        asked.weigh(head, sums)  # (2, n)

    Attributes:
        target: the attacked run.
        by_node: the candidates at each node.
    """

    target: SolvedTarget
    by_node: Sequence[FeatureRows]

    @classmethod
    def of(cls, target: SolvedTarget, candidates: Sequence[Candidates]) -> AskedRecords:
        """Return the features of all candidates."""
        examples = []
        for known, each in zip(target.known, candidates, strict=True):
            examples.append(known.rows_at(each.rows))
        return cls(target, examples)

    def weigh(self, head: State, sums: Sequence[Sums]) -> np.ndarray:
        """Return `(2, n)`: each candidate's confidence under a shared head, and what its own node's
        sums say of it.
        """
        parts = []
        for examples, own in zip(self.by_node, sums, strict=True):
            outputs = self.target.outputs(head, examples)
            confidence = scale_confidences(outputs, examples.labels).double().numpy()
            parts.append(np.stack([confidence, weigh_in_sums(self.target, examples, own)]))
        return np.concatenate(parts, axis=1)


def weigh_in_sums(target: SolvedTarget, examples: FeatureRows, sums: Sums) -> np.ndarray:
    """Return how much a node's sums speak for each record, `(n,)`."""
    if isinstance(sums, GramSums):
        features = rounding_of(target.plan).to_integers(examples.features.numpy())
        return -np.log(measure_leverage(sums, features))
    return project_on_sums(target.plan, examples, sums)


def measure_leverage(sums: GramSums, features: np.ndarray) -> np.ndarray:
    """Return φᵀ(Σφφᵀ)⁻¹φ of each record, `(n,)`; next to infinite outside of the records' span.

    Args:
        features: integers in float64 `(n, d)`.
    """
    gram = sums.gram.astype(np.float64)
    if gram.ndim == 1:
        # of products of features with themselves alone: as if no others were there
        return (features**2 / np.maximum(gram, 1.0)).sum(1)
    size = max(float(np.trace(gram)), 1.0)
    factor = cho_factor(gram / size + _LEAST_EIGENVALUE * np.eye(len(gram)), lower=True)
    scaled = features / size**0.5
    leverages = (scaled * cho_solve(factor, scaled.T).T).sum(1)
    return np.maximum(leverages, _LEAST_EIGENVALUE)


def project_on_sums(plan: Plan, examples: FeatureRows, sums: NoisySums) -> np.ndarray:
    """Return the inner product of noisy sums with what each record adds to them, `(n,)`; 1 is what
    it adds by its features.
    """
    form = noisy_form_of(plan)
    shares = plan.train.closed_form.shares
    codes = form.codes(examples.labels, plan.task, shares)
    counted = form.counted(examples.labels, plan.task, shares)
    onto_codes = round_within(examples.features.numpy()) @ sums.sums.astype(np.float64)
    of_features = (onto_codes * codes).sum(1)
    of_counts = COUNT_STEP * (counted @ sums.counts.astype(np.float64))
    return (of_features + of_counts) / SCALE**2
