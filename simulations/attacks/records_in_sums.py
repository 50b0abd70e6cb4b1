"""Reconstruction from sums: how few records is too few?

The attacker is the server, or whoever sees what one node sends, and knows how many records are
behind it. Some records of the run are drawn, more and more of them, and summed as a node sums them,
with its noise where the plan has it. Three things are tried on the sums of n records:

exact     without noise: every record's features to the last bit, from their products alone
          (`unit_lattice.py`)
members   with records at hand, and nothing known of the others: which of them are in? By the
          leverage φᵀ(Σφφᵀ)⁻¹φ, or under noise by the inner product with the sums. A record that is
          in has a leverage of at most 1. Of n records of d features those that are not in have
          about d / (n − d): up to n = 2d nearly every stranger is excluded for certain, and up to
          n = d every one
class     the features of a record of a class, guessed to be the mean of the n of that class, beside
          the mean of records that are public
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedgraft.common.model.solve_head import noisy_form_of, rounding_of, sums_products
from fedgraft.common.plan.plan import Plan
from fedgraft.common.statistics.gram_sums import LEAST_RECORDS_A_FEATURE, GramSums
from fedgraft.common.statistics.noisy_sums import SCALE, NoisySums
from fedgraft.simulations.attacks.candidates import match_strata
from fedgraft.simulations.attacks.roc import summarize_scores
from fedgraft.simulations.attacks.solved_membership import weigh_in_sums
from fedgraft.simulations.attacks.solved_target import (
    FeatureRows,
    SolvedTarget,
    Sums,
    open_solved,
)
from fedgraft.simulations.attacks.unit_lattice import match_records, recover_records

# records that are drawn, and in parts of the number of features
FEW = (1, 2, 4, 8, 16, 32)
SHARES_OF_FEATURES = (0.5, 1.0, 1.5, 2.0, 4.0)
# records whose membership is asked for at each number, in several draws where one has fewer
ASKED = 64
MOST_ASKED = 256
MOST_DRAWS_OF_CLASS = 8
# of the false-positive rates, the one of which hits are told
HITS_AT = "0.01"


def rebuild_records(plan: Plan, run: Path, nodes: Sequence[Path], seed: int) -> dict[str, Any]:
    """Try to rebuild records from the sums of few.

    Returns:
        features; noised: whether sums have noise; nodes; nodes_below_features, nodes_below_floor:
        how many have fewer training records than features, or than twice as many;
        fewest_of_a_class: the smallest class that a node has; by_size: of each number of records
        exact (share that came back to the last bit; none where it was not tried), auc and hits of
        membership with intervals, error: median relative error of a record's features guessed as
        the mean of its class, error_mean: of the public mean.

    Raises:
        UserError: no finished run there.
    """
    target = open_solved(plan, run, nodes)
    sizes = [len(data.train) for data in target.run.nodes]
    features = target.reader.count_features()
    smallest = [_fewest_of_a_class(target, data.train.labels) for data in target.run.nodes]
    pool = RecordPool.of(target, seed)
    by_size: dict[str, Mapping[str, Any]] = {}
    for size in choose_sizes(features, len(pool.members)):
        by_size[str(size)] = pool.try_size(size)
    return {
        "kind": "reconstruction",
        "features": features,
        "noised": plan.privacy.at_node,
        "nodes": len(nodes),
        "nodes_below_features": sum(size < features for size in sizes),
        "nodes_below_floor": sum(size < LEAST_RECORDS_A_FEATURE * features for size in sizes),
        "fewest_of_a_class": min(smallest),
        "by_size": by_size,
    }


def choose_sizes(features: int, records: int) -> list[int]:
    """Return the numbers of records that are tried, rising, as far as there are so many."""
    sizes = {*FEW}
    for share in SHARES_OF_FEATURES:
        sizes.add(round(share * features))
    return sorted(size for size in sizes if size <= records)


def _fewest_of_a_class(target: SolvedTarget, labels: torch.Tensor) -> int:
    strata = target.run.task.strata(labels.numpy(), target.plan.task)
    counts = np.unique(strata, return_counts=True)[1]
    return int(counts.min())


@dataclass(frozen=True, eq=False)
class RecordPool:
    """The records of all nodes together, to draw from.

        pool = RecordPool.of(target, seed=0)
        pool.try_size(8)["auc"]

    Attributes:
        target: the run.
        members: everybody's training records.
        others: records that no one trained on.
        seed: of draws and noise.
    """

    target: SolvedTarget
    members: FeatureRows
    others: FeatureRows
    seed: int

    @classmethod
    def of(cls, target: SolvedTarget, seed: int) -> RecordPool:
        """Return the records of a run."""
        members = []
        others = []
        for data, known in zip(target.run.nodes, target.known, strict=True):
            members.append(known.rows_at(data.train.rows))
            others.append(known.rows_at(data.others.rows))
        everybody = _join(members)
        return cls(target, everybody, _leave_out_copies(_join(others), everybody), seed)

    def try_size(self, size: int) -> dict[str, Any]:
        """Return what is found in sums of so many records."""
        rng = np.random.default_rng([self.seed, 7, size])
        found: dict[str, Any] = {}
        if not self.target.plan.privacy.at_node:
            found |= self._try_exact(size, rng)
        return found | self._try_members(size, rng) | self._try_class(size, rng)

    def sum_up(self, examples: FeatureRows, draw: int) -> Sums:
        """Return the sums over some records, as the first node would send them; each draw has noise
        of its own.
        """
        split = self.target.run.nodes[0].train
        return self.target.sum_examples(0, split, examples, self.seed, round_=draw)

    # ── exact ─────────────────────────────────────────────────────────────────────────────────────
    def _try_exact(self, size: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return the share of records that came back to the last bit."""
        if size > max(FEW):
            return {}
        drawn = self.members[rng.choice(len(self.members), size, replace=False)]
        sums = self.sum_up(drawn, draw=1)
        if not isinstance(sums, GramSums):
            raise TypeError("sums with noise have no products")
        if not sums_products(self.target.plan):
            # records are told apart by products of one feature with another
            return {}
        found = recover_records(sums.gram, size, rng)
        if found is None:
            return {"exact": 0.0}
        truth = rounding_of(self.target.plan).to_integers(drawn.features.numpy())
        return {"exact": match_records(found, truth) / size}

    # ── members ───────────────────────────────────────────────────────────────────────────────────
    def _try_members(self, size: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return how well members are told from others of the same classes."""
        members = []
        others = []
        for draw in range(1, _count_draws(size) + 1):
            drawn = self.members[rng.choice(len(self.members), size, replace=False)]
            sums = self.sum_up(drawn, draw)
            mine, theirs = self._ask(drawn, rng)
            members.append(weigh_in_sums(self.target, mine, sums))
            others.append(weigh_in_sums(self.target, theirs, sums))
        scores = summarize_scores(np.concatenate(members), np.concatenate(others), seed=self.seed)
        return {
            "auc": scores["auc"],
            "auc_interval": scores["auc_interval"],
            "hits": scores["tpr"][HITS_AT],
            "hits_interval": scores["tpr_interval"][HITS_AT],
        }

    def _ask(self, drawn: FeatureRows, rng: np.random.Generator) -> tuple[FeatureRows, FeatureRows]:
        """Return some of the records drawn, and others with the same classes."""
        asked = drawn[np.arange(min(len(drawn), MOST_ASKED))]
        task = self.target.plan.task
        strata = self.target.run.task.strata
        mine, theirs = match_strata(
            strata(asked.labels.numpy(), task), strata(self.others.labels.numpy(), task), rng
        )
        return asked[mine], self.others[theirs]

    # ── class ─────────────────────────────────────────────────────────────────────────────────────
    def _try_class(self, size: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return how far a record's features are from the mean of the n of its class, and from the
        mean of public records of it.
        """
        labels = self.members.labels
        counts = np.bincount(labels.numpy())
        common = int(counts.argmax())
        if counts[common] < size:
            return {}
        errors = []
        errors_of_mean = []
        of_class = np.flatnonzero(labels.numpy() == common)
        public = self.others.features[self.others.labels == common].double().mean(0).numpy()
        for draw in range(1, min(_count_draws(size), MOST_DRAWS_OF_CLASS) + 1):
            drawn = self.members[rng.choice(of_class, size, replace=False)]
            guess = self._average_class(self.sum_up(drawn, draw), drawn)
            truth = drawn.features.double().numpy()[:MOST_ASKED]
            errors.append(_relative_errors(guess, truth))
            errors_of_mean.append(_relative_errors(public, truth))
        return {
            "error": float(np.median(np.concatenate(errors))),
            "error_mean": float(np.median(np.concatenate(errors_of_mean))),
        }

    def _average_class(self, sums: Sums, drawn: FeatureRows) -> np.ndarray:
        """Return the mean features of records of one class, from their sums `(d,)`."""
        plan = self.target.plan
        if isinstance(sums, NoisySums):
            code = noisy_form_of(plan).codes(
                drawn.labels[:1], plan.task, plan.train.closed_form.shares
            )
            return sums.sums.astype(np.float64) @ code[0] / SCALE / len(drawn)
        label = int(drawn.labels[0])
        return sums.cross[:, label] * rounding_of(plan).unit / len(drawn)


def _count_draws(size: int) -> int:
    """Return how many draws of so many records there are."""
    return -(-ASKED // size)


def _join(parts: Sequence[FeatureRows]) -> FeatureRows:
    features = torch.cat([part.features for part in parts])
    return FeatureRows(features, torch.cat([part.labels for part in parts]))


def _leave_out_copies(others: FeatureRows, members: FeatureRows) -> FeatureRows:
    """Return the others that are no copies of a member: data sets have some records twice."""
    known = {row.tobytes() for row in members.features.numpy()}
    is_new = [row.tobytes() not in known for row in others.features.numpy()]
    return others[np.flatnonzero(is_new)]


def _relative_errors(guess: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the error of one guess at each record, over the length of the record's features."""
    lengths = np.linalg.norm(truth, axis=1)
    return np.linalg.norm(truth - guess, axis=1) / np.maximum(lengths, 1e-12)
