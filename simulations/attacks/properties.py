"""Property leakage: which share of a node's patients is sick, from its update's head.

The attacker trains as a node does, from the same received model, on public records in which the
share of a class is known, several times over, and fits a line from what happened to the head's bias
and weights to the share (a meta-classifier as in Ateniese et al. 2015 and Melis et al. 2019, here a
ridge regression). Then it reads the nodes' last updates.

Privacy for an example or a patient does not promise to hide this, for it is of all records of a
node. Privacy for a node (mode local) does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedgraft.client.data.split import Split
from fedgraft.common.errors import UserError
from fedgraft.common.plan.plan import Plan
from fedgraft.simulations.attacks.target import State, Target, open_target

SHADOWS = 24
# the least and the largest share that a shadow has of the class
SHARES = (0.05, 0.95)
RIDGE = 1e-2
# the class whose share is asked for: the last of two, the second of many
PROPERTY = 1
# a standard deviation below which nothing varies
_STILL = 1e-9


def estimate_shares(plan: Plan, run: Path, nodes: Sequence[Path], seed: int) -> dict[str, Any]:
    """Estimate the share of one class at every node.

    Returns:
        share_of: the class; error: mean absolute error over the nodes; error_chance: that of
            answering every node's mean share; spread: standard deviation of the true shares (with
            none there is nothing to read); correlation of estimate and truth over the nodes, None
            where either does not vary.

    Raises:
        UserError: no finished run there, or public records of one class only.
    """
    target = open_target(plan, run, nodes)
    with_property, without_property = find_public_rows(target)
    if not len(with_property) or not len(without_property):
        what = "all public records are of one kind"
        raise UserError(what, where=str(run), remedy="attack data with a val split")

    rng = np.random.default_rng([seed, 6])
    heads = []
    shares = []
    for number, share in enumerate(np.linspace(*SHARES, SHADOWS)):
        example = target.nodes[number % len(nodes)]
        size = len(example.train)
        count = round(float(share) * size)
        some_with = rng.choice(with_property, count)
        some_without = rng.choice(without_property, size - count)
        rows = rng.permutation(np.concatenate([some_with, some_without]))
        heads.append(_train_shadow(target, rows, seed * 1000 + number + 1))
        shares.append(count / size)
    predict = fit_shares(np.stack(heads), np.array(shares))

    moves = []
    for number in range(len(nodes)):
        moves.append(measure_move(target, target.update(number)))
    guess = predict(np.stack(moves))
    truth = np.array([_share_at(data.train) for data in target.nodes])
    by_chance = truth.mean()
    classes = target.task.columns(plan.task)
    return {
        "kind": "properties",
        "share_of": classes[PROPERTY],
        "nodes": len(nodes),
        "error": _mean_error(guess, truth),
        "error_chance": _mean_error(by_chance, truth),
        "spread": float(truth.std()),
        "correlation": _correlate(guess, truth),
    }


# ── what is known ─────────────────────────────────────────────────────────────────────────────────
def find_public_rows(target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of the first node's file that no one trained on: those of the class, and the
    others.
    """
    records = target.nodes[0].train.records
    parts = []
    for data in target.nodes:
        if data.others.records.source is records.source:
            parts.append(data.others.rows)
    rows = np.concatenate(parts)
    has_property = records.labels[rows] == PROPERTY
    return rows[has_property], rows[~has_property]


def _train_shadow(target: Target, rows: np.ndarray, seed: int) -> np.ndarray:
    """Return the move of the head in a last round on rows of the first node's file."""
    split = target.nodes[0].select(rows)
    state = target.train(0, split, target.received, target.last, seed)
    return measure_move(target, state)


def measure_move(target: Target, state: State) -> np.ndarray:
    """Return what the last round did to the head: to each bias, and to each class's weights
    together, `(2 classes,)`.
    """
    name = target.model.head_name
    before = target.received
    bias = state[f"{name}.bias"] - before[f"{name}.bias"]
    weight = state[f"{name}.weight"] - before[f"{name}.weight"]
    of_bias = bias - bias.mean()
    of_weight = (weight - weight.mean(0)).sum(1)
    return torch.cat([of_bias, of_weight]).double().numpy()


# ── what is read ──────────────────────────────────────────────────────────────────────────────────
def fit_shares(rows: np.ndarray, shares: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a ridge regression on standardised columns: a function from rows `(n, d)` to shares
    within 0 and 1, `(n,)`.
    """
    mean = rows.mean(0)
    scale = rows.std(0) + 1e-12
    centre = shares.mean()
    x = (rows - mean) / scale
    penalty = RIDGE * len(x) * np.eye(x.shape[1])
    moments = x.T @ x + penalty
    weights = np.linalg.solve(moments, x.T @ (shares - centre))

    def predict(new: np.ndarray) -> np.ndarray:
        standardised = (new - mean) / scale
        return np.clip(standardised @ weights + centre, 0, 1)

    return predict


def _share_at(split: Split) -> float:
    has_property = split.labels == PROPERTY
    return float(has_property.double().mean())


def _mean_error(guess: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(guess - truth).mean())


def _correlate(guess: np.ndarray, truth: np.ndarray) -> float | None:
    """Return the correlation; None where either does not vary."""
    if truth.std() <= _STILL or guess.std() <= _STILL:
        return None
    return float(np.corrcoef(guess, truth)[0, 1])
