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
from fedgraft.simulations.attacks.roc import measured
from fedgraft.simulations.attacks.target import NodeData, Target, open_target


def loss_threshold(plan: Plan, run: Path, nodes: Sequence[Path], seed: int) -> dict[str, Any]:
    """Attack a finished run. Returns plain numbers: see
    `fedgraft.simulations.attacks.roc.measured`, once for each view.

    Raises:
        UserError: no finished run there.
    """
    target = open_target(plan, run, nodes)
    updates = [target.update(number) for number in range(len(nodes))]
    views = {"shared model": [target.shared] * len(nodes), "node updates": updates}
    return {
        "kind": "membership",
        "others_from": target.others,
        "views": {
            name: measured(*scores(target, states, np.random.default_rng([seed, 1])), seed=seed)
            for name, states in views.items()
        },
    }


def scores(
    target: Target, states: Sequence[dict], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """−loss of members and of others, each under its own node's state; classes in equal shares on
    both sides.
    """
    members, others = [], []
    for number, (data, state) in enumerate(zip(target.nodes, states, strict=True)):
        mine, theirs = alike(data, rng)
        members.append(-target.losses(number, state, data.train)[mine])
        others.append(-target.losses(number, state, data.others)[theirs])
    return np.concatenate(members), np.concatenate(others)


def alike(data: NodeData, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Positions of members and of others such that both have each class in the same proportion.

    Else an attack would win at a node of sick people by calling all sick people members. As many as
    can be are kept.
    """
    mine, theirs = data.train.labels.numpy(), data.others.labels.numpy()
    classes = int(max(mine.max(initial=0), theirs.max(initial=0))) + 1
    have, can = np.bincount(mine, minlength=classes), np.bincount(theirs, minlength=classes)
    both = (have > 0) & (can > 0)  # a class that one side lacks tells nothing of membership
    ratio = (can[both] / have[both]).min(initial=np.inf)
    kept_mine, kept_theirs = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for label in np.flatnonzero(both):
        kept_mine.append(np.flatnonzero(mine == label))
        drawn = rng.permutation(np.flatnonzero(theirs == label))
        kept_theirs.append(np.sort(drawn[: max(1, round(ratio * have[label]))]))
    return np.concatenate(kept_mine), np.concatenate(kept_theirs)
