"""Label leakage: how many of each class a batch had, from the gradient of the head's bias.

The bias of class k has gradient mean(p_k − 1[label = k]) over the batch (softmax and
cross-entropy). So with one record its only negative entry is the label (Zhao, Mopuri and Bilen
2020, "iDLG", eq. 4). With several, the attacker knows the model and has public records: if these
give p̄_c on average for class c, a batch with class shares s has gradient Σ_c s_c (p̄_c − e_c),
which is solved for s (as in Wainakh et al. 2022, "User-level label leakage from gradients").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.privacy.dp_sgd import Randomness
from fedgraft.common.plan.plan import Plan
from fedgraft.simulations.attacks.gradients import mechanism_of, released
from fedgraft.simulations.attacks.target import open_target

BATCHES = 16
TOGETHER = 8  # records in a batch


def labels(plan: Plan, run: Path, nodes: Sequence[Path], seed: int) -> dict[str, Any]:
    """Read labels off single records' gradients, and counts off batches', at the model that every
    node starts from.

    Batches have classes in shares of their own, drawn anew for each, so that there is something to
    read.

    Returns:
        single: share of single records whose label is read rightly; single_chance: one over
            classes;
        counts: share of a batch's labels that the estimated counts have right, mean over batches;
        counts_interval: 95 %, bootstrap over batches; counts_chance: that of calling all classes
            equally frequent.

    Raises:
        UserError: no finished run there, or a plan whose steps nobody sees.
    """
    target = open_target(plan, run, nodes)
    target.model.load_adapter_state(target.first)
    classes, rng = len(plan.task.classes), np.random.default_rng([seed, 5])
    randomness = Randomness(b"labels" + seed.to_bytes(8, "little"))
    public = _public_outputs(target, classes)
    names = list(target.model.trainable_parameters())
    bias = names.index(f"{target.model.head_name}.bias")
    single, ours, chance = [], [], []
    for batch in range(BATCHES):
        number = batch % len(nodes)
        data, mechanism = target.nodes[number], mechanism_of(target, number)

        def read(rows: np.ndarray, data=data, mechanism=mechanism) -> Tensor:
            at = torch.from_numpy(rows)
            inputs, wanted = data.train.inputs(at), data.train.labels[at]
            return released(target.model, inputs, wanted, mechanism, randomness)[bias].detach()

        mine = data.train.labels.numpy()
        one = rng.integers(len(mine), size=1)
        single.append(int(read(one).argmin()) == mine[one[0]])
        rows = _of_drawn_classes(mine, classes, rng)
        truth = np.bincount(mine[rows], minlength=classes)
        ours.append(_agreement(class_counts(read(rows), public, len(rows)), truth))
        chance.append(_agreement(np.full(classes, len(rows) / classes), truth))
    drawn = [np.mean(rng.choice(ours, len(ours))) for _ in range(1000)]
    return {
        "kind": "labels",
        "batches": BATCHES,
        "together": TOGETHER,
        "single": float(np.mean(single)),
        "single_chance": 1 / classes,
        "counts": float(np.mean(ours)),
        "counts_interval": [float(edge) for edge in np.percentile(drawn, [2.5, 97.5])],
        "counts_chance": float(np.mean(chance)),
    }


def class_counts(bias_gradient: Tensor, public: Tensor, together: int) -> np.ndarray:
    """Estimated records of each class in a batch, `(classes,)`, summing to `together`; not whole
    numbers.

    Args:
        bias_gradient: of the head, mean over the batch, `(classes,)`.
        public: p̄, `(classes, classes)`: row c has the mean softmax of public records of class c.
    """
    classes = len(bias_gradient)
    system = torch.cat(
        [(public - torch.eye(classes)).T, torch.ones(1, classes)]
    )  # the last row: shares sum to one
    wanted = torch.cat([bias_gradient, torch.ones(1)])
    shares = (
        torch.linalg.lstsq(system.double(), wanted.double()[:, None])
        .solution[:, 0]
        .clamp(0, 1)
        .numpy()
    )
    return together * shares / max(shares.sum(), 1e-12)


def _agreement(counts: np.ndarray, truth: np.ndarray) -> float:
    """Share of the labels that two counts have in common."""
    return float(np.minimum(counts, truth).sum() / truth.sum())


def _of_drawn_classes(mine: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of a batch whose class shares are drawn uniformly, among the classes that the node
    has.
    """
    shares = rng.dirichlet(np.ones(classes)) * (np.bincount(mine, minlength=classes) > 0)
    wanted = rng.multinomial(TOGETHER, shares / shares.sum())
    parts = [rng.choice(np.flatnonzero(mine == c), n) for c, n in enumerate(wanted) if n]
    return np.concatenate(parts)


def _public_outputs(target: Any, classes: int) -> Tensor:
    """Mean softmax of the rows that no one trained on, by class; an unseen class is taken to look
    like all.
    """
    found = [
        target.logits(n, target.first, data.others).softmax(1)
        for n, data in enumerate(target.nodes)
    ]
    outputs, of = torch.cat(found), torch.cat([data.others.labels for data in target.nodes])
    whole = outputs.mean(0)
    return torch.stack(
        [outputs[of == c].mean(0) if bool((of == c).any()) else whole for c in range(classes)]
    )
