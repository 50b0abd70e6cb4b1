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
RIDGE = 1e-2
PROPERTY = 1  # the class whose share is asked for: the last of two, the second of many


def properties(plan: Plan, run: Path, nodes: Sequence[Path], seed: int) -> dict[str, Any]:
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
    rng = np.random.default_rng([seed, 6])
    rows, of = public_rows(target)
    if len(set((of == PROPERTY).tolist())) < 2:
        raise UserError(
            "all public records are of one kind",
            where=str(run),
            remedy="attack data with a val split",
        )
    heads, known = [], []
    for number, share in enumerate(np.linspace(0.05, 0.95, SHADOWS)):
        size = len(target.nodes[number % len(nodes)].train)
        count = round(float(share) * size)
        drawn = np.r_[
            rng.choice(rows[of == PROPERTY], count), rng.choice(rows[of != PROPERTY], size - count)
        ]
        split = Split(
            target.nodes[0].train.records, rng.permutation(drawn), target.nodes[0].train.preprocess
        )
        state = target.trained(
            0, split, target.received, plan.train.rounds, seed * 1000 + number + 1
        )
        heads.append(moved(target, state))
        known.append(count / size)
    predict = fitted(np.stack(heads), np.array(known))
    truth = np.array(
        [float((data.train.labels == PROPERTY).double().mean()) for data in target.nodes]
    )
    guess = predict(
        np.stack([moved(target, target.update(number)) for number in range(len(nodes))])
    )
    varies = truth.std() > 1e-9 and guess.std() > 1e-9
    return {
        "kind": "properties",
        "share_of": plan.task.classes[PROPERTY],
        "nodes": len(nodes),
        "error": float(np.abs(guess - truth).mean()),
        "error_chance": float(np.abs(truth.mean() - truth).mean()),
        "spread": float(truth.std()),
        "correlation": float(np.corrcoef(guess, truth)[0, 1]) if varies else None,
    }


def fitted(rows: np.ndarray, shares: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Ridge regression on standardised columns: a function from rows `(n, d)` to shares within 0
    and 1, `(n,)`.
    """
    mean, scale = rows.mean(0), rows.std(0) + 1e-12
    x, centre = (rows - mean) / scale, shares.mean()
    weights = np.linalg.solve(
        x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ (shares - centre)
    )
    return lambda new: np.clip((new - mean) / scale @ weights + centre, 0, 1)


def moved(target: Target, state: State) -> np.ndarray:
    """What the last round did to the head: to each bias, and to each class's weights together, `(2
    classes,)`.
    """
    name, before = target.model.head_name, target.received
    bias = state[f"{name}.bias"] - before[f"{name}.bias"]
    weight = state[f"{name}.weight"] - before[f"{name}.weight"]
    return torch.cat([bias - bias.mean(), (weight - weight.mean(0)).sum(1)]).double().numpy()


def public_rows(target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the first node's file that no one trained on, and their classes."""
    records = target.nodes[0].train.records
    rows = np.concatenate(
        [data.others.rows for data in target.nodes if data.others.records.source is records.source]
    )
    return rows, records.labels[rows]
