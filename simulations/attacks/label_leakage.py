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

from fedgraft.client.data.split import Split
from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.simulations.attacks.gradients import ObservedStep, observe_step
from fedgraft.simulations.attacks.target import Target, open_target

BATCHES = 16
# records in a batch
TOGETHER = 8
# of the bootstrap over batches
DRAWS = 1000
# percentiles of the bootstrap between which the interval lies
INTERVAL = (2.5, 97.5)


def read_labels(plan: Plan, run: Path, nodes: Sequence[Path], seed: int) -> dict[str, Any]:
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
    classes = target.model.outputs
    rng = np.random.default_rng([seed, 5])
    randomness = Randomness(b"labels" + seed.to_bytes(8, "little"))
    public = _average_predictions(target)

    single = []
    shared = []
    shared_by_chance = []
    for batch in range(BATCHES):
        number = batch % len(nodes)
        split = target.nodes[number].train
        labels = split.labels.numpy()
        step = observe_step(target, number, randomness)

        row = rng.integers(len(labels), size=1)
        guess = int(_observe_bias(step, split, row).argmin())
        single.append(guess == labels[row[0]])

        rows = _draw_batch(labels, classes, rng)
        truth = np.bincount(labels[rows], minlength=classes)
        observed = _observe_bias(step, split, rows)
        counts = count_classes(observed, public, len(rows))
        equal = np.full(classes, len(rows) / classes)
        shared.append(_share_in_common(counts, truth))
        shared_by_chance.append(_share_in_common(equal, truth))

    drawn = [np.mean(rng.choice(shared, len(shared))) for _ in range(DRAWS)]
    interval = np.percentile(drawn, INTERVAL)
    return {
        "kind": "labels",
        "batches": BATCHES,
        "together": TOGETHER,
        "single": _average(single),
        "single_chance": 1 / classes,
        "counts": _average(shared),
        "counts_interval": interval.tolist(),
        "counts_chance": _average(shared_by_chance),
    }


def _average(values: Sequence[float]) -> float:
    return float(np.mean(values))


def count_classes(bias_gradient: Tensor, public: Tensor, together: int) -> np.ndarray:
    """Return the estimated records of each class in a batch, `(classes,)`, summing to `together`;
    not whole numbers.

    Args:
        bias_gradient: of the head, mean over the batch, `(classes,)`.
        public: p̄, `(classes, classes)`: row c has the mean softmax of public records of class c.
    """
    classes = len(bias_gradient)
    # the last row: shares sum to one
    by_class = public - torch.eye(classes)
    system = torch.cat([by_class.T, torch.ones(1, classes)])
    right_side = torch.cat([bias_gradient, torch.ones(1)])
    solved = torch.linalg.lstsq(system.double(), right_side.double()[:, None])
    shares = solved.solution[:, 0].clamp(0, 1).numpy()
    return together * shares / max(shares.sum(), 1e-12)


def _observe_bias(step: ObservedStep, split: Split, rows: np.ndarray) -> Tensor:
    """Return the gradient of the head's bias `(classes,)`, as it leaves a node, over some rows."""
    positions = torch.from_numpy(rows)
    released = step.release(split.inputs(positions), split.labels[positions])
    names = list(step.model.trainable_parameters())
    bias = names.index(f"{step.model.head_name}.bias")
    return released[bias].detach()


def _share_in_common(counts: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of the labels that two counts have in common."""
    common = np.minimum(counts, truth).sum()
    return float(common / truth.sum())


def _draw_batch(labels: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Return positions of a batch whose class shares are drawn uniformly, among the classes that
    the node has.
    """
    is_there = np.bincount(labels, minlength=classes) > 0
    shares = rng.dirichlet(np.ones(classes)) * is_there
    counts = rng.multinomial(TOGETHER, shares / shares.sum())
    positions = []
    for number, count in enumerate(counts):
        if count:
            positions.append(rng.choice(np.flatnonzero(labels == number), count))
    return np.concatenate(positions)


def _average_predictions(target: Target) -> Tensor:
    """Return the mean softmax of the rows that no one trained on, by class `(classes, classes)`; an
    unseen class is taken to look like all.
    """
    outputs = []
    labels = []
    for number, data in enumerate(target.nodes):
        outputs.append(target.outputs(number, target.first, data.others))
        labels.append(data.others.labels)
    predictions = target.task.predict(torch.cat(outputs), target.plan.task)
    classes_of = torch.cat(labels)
    of_all = predictions.mean(0)
    averages = []
    for number in range(target.model.outputs):
        of_class = predictions[classes_of == number]
        if len(of_class):
            averages.append(of_class.mean(0))
        else:
            averages.append(of_all)
    return torch.stack(averages)
