"""Empirical ε of sums with noise: canaries among a node's records, its real releases, guesses from
what came out.

A canary is a record whose one feature is 1 and whose others are 0: it moves the sums by as much as
any record may, in a direction that no other canary shares (a "Dirac canary", Steinke et al. 2023,
section 6). There is one for each feature and class. In each of many releases every canary is among
the node's own records by a coin of its own; the client's own code rounds, sums, draws the exact
noise and adds it (`client/sum_round.py`). The auditor knows all records but the canaries' coins,
and scores a canary by the inner product of its direction with what is left of the release.

A coin has to do with one release alone, so whoever is (ε, δ)-private in one of them is so for every
coin of all of them, and the bound of `empirical_epsilon.py` holds for all coins together. The
node's ledger is not written: nothing of this is released.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedgraft.client.node_task import NodeTask
from fedgraft.client.sum_round import release_sums, sum_privately, sum_split
from fedgraft.common.model.solve_head import noisy_form_of, rounding_of
from fedgraft.common.plan.plan import Plan
from fedgraft.common.statistics.gram_sums import GramSums
from fedgraft.common.statistics.noisy_sums import SCALE, round_within
from fedgraft.simulations.attacks.empirical_epsilon import GUESSED, audit_guesses
from fedgraft.simulations.attacks.privacy_limit import state_privacy
from fedgraft.simulations.attacks.solved_target import (
    FeatureRows,
    SolvedTarget,
    Sums,
    open_solved,
)
from fedgraft.simulations.attacks.unrecorded_budget import UnrecordedBudget

# in all releases together
CANARIES = 70_000
MOST_RELEASES = 200
# of the canaries are guessed, those of the highest and lowest scores: one release of Gaussian noise
# tells of few, and of these more
GUESSED_THROUGH_NOISE = (0.2, 0.05, 0.01)


def audit_sums(plan: Plan, run: Path, nodes: Sequence[Path], seed: int) -> dict[str, Any]:
    """Audit the release as the first node makes it, and set the bound beside the ε that the run
    states.

    Returns:
        node, stated_epsilon (None: no privacy), releases, and the fields of
        `fedgraft.simulations.attacks.empirical_epsilon.Audit`.

    Raises:
        UserError: no finished run there.
    """
    target = open_solved(plan, run, nodes)
    stated = None
    delta = 0.0
    if plan.privacy.at_node:
        promise = state_privacy(target.run, 0)
        stated = promise.epsilon
        delta = promise.delta
    auditor = SumsAuditor.of(target, seed)
    releases = auditor.count_releases()
    coins = np.random.default_rng([seed, 3]).random((releases, len(auditor.canaries))) < 0.5
    scores = [auditor.score(number, included) for number, included in enumerate(coins, start=1)]
    shares = GUESSED if stated is None else GUESSED_THROUGH_NOISE
    audit = audit_guesses(np.concatenate(scores), coins.ravel(), delta=delta, shares=shares)
    return {
        "kind": "audit",
        "node": target.run.nodes[0].node.name,
        "stated_epsilon": stated,
        "releases": releases,
        **asdict(audit),
    }


@dataclass(frozen=True, eq=False)
class SumsAuditor:
    """The first node of a run, its records and the canaries.

        auditor = SumsAuditor.of(target, seed=0)
        auditor.score(1, included)  # (canaries,)

    Attributes:
        target: the run.
        own: the node's records.
        canaries: all that there are.
        seed: of the noise.
    """

    target: SolvedTarget
    own: FeatureRows
    canaries: FeatureRows
    seed: int

    @cached_property
    def known(self) -> Sums:
        """Return the sums over the node's own records, without noise."""
        task = self._open_task(np.zeros(len(self.canaries), bool))
        if task.budget is None:
            return sum_split(task)
        return sum_privately(task, task.budget.patients)

    @classmethod
    def of(cls, target: SolvedTarget, seed: int) -> SumsAuditor:
        """Return the auditor of a run's first node."""
        own = target.known[0].rows_at(target.run.nodes[0].train.rows)
        return cls(target, own, make_canaries(target), seed)

    def count_releases(self) -> int:
        """Return how many releases are made: without noise one tells all."""
        if not self.target.plan.privacy.at_node:
            return 1
        return min(math.ceil(CANARIES / len(self.canaries)), MOST_RELEASES)

    def score(self, number: int, included: np.ndarray) -> np.ndarray:
        """Return the score of each canary in a release, `(canaries,)`; 1 is what it adds.

        Args:
            number: of the release, from 1; it has noise of its own.
            included: which canaries are among the records, bool `(canaries,)`.
        """
        task = self._open_task(included)
        known = self.known
        if isinstance(known, GramSums):
            return self._look(sum_split(task) - known)
        released = release_sums(task, number)
        return self._look_through_noise(released.sums - known.sums)

    def _open_task(self, included: np.ndarray) -> NodeTask:
        """Return what the node works on with some canaries behind its records."""
        added = self.canaries[included]
        features = torch.cat([self.own.features, added.features])
        labels = torch.cat([self.own.labels, added.labels])
        data = self.target.run.nodes[0]
        examples = FeatureRows(features, labels)
        task = self.target.open_task(0, data.train, examples, self.seed)
        if not isinstance(task.budget, UnrecordedBudget) or task.budget.patients is None:
            return task
        # each canary is a patient
        alone = [np.array([len(self.own) + k]) for k in range(len(added))]
        return replace(task, budget=replace(task.budget, added=alone))

    def _look(self, left: GramSums) -> np.ndarray:
        """Return scores in what canaries added to sums without noise."""
        lit = self.canaries.features.numpy() != 0
        steps = 2.0 ** rounding_of(self.target.plan).bits
        by_class = lit @ left.cross.astype(np.float64) / steps
        return by_class[np.arange(len(by_class)), self.canaries.labels.numpy()]

    def _look_through_noise(self, left: np.ndarray) -> np.ndarray:
        """Return scores in what canaries and noise added to sums `(d, codes)`."""
        plan = self.target.plan
        shares = plan.train.closed_form.shares
        codes = noisy_form_of(plan).codes(self.canaries.labels, plan.task, shares)
        directions = round_within(self.canaries.features.numpy())
        onto_codes = directions @ left.astype(np.float64)
        return (onto_codes * codes).sum(1) / SCALE**2


def make_canaries(target: SolvedTarget) -> FeatureRows:
    """Return a canary for each feature and class; where classes share a sum, one for each
    feature.
    """
    plan = target.plan
    features = target.reader.count_features()
    size = 1.0
    if not plan.privacy.at_node:
        size = plan.train.closed_form.bound
    directions = size * torch.eye(features)
    classes = len(plan.task.classes)
    if plan.train.closed_form.shares == "equal":
        return FeatureRows(directions, torch.arange(features) % classes)
    labels = torch.arange(classes).repeat_interleave(features)
    return FeatureRows(directions.repeat(classes, 1), labels)
