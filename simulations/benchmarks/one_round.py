"""What a head in one round costs under differential privacy: accuracy and AUROC by ε, over draws of
the noise, with noise at each of eight hospitals and with one noise for all.

    python -m fedgraft.simulations.benchmarks.one_round [--draws 10]

The frozen pass is taken once. Sums of hospitals add up to the sums of all, so a deal of the records
changes nothing; the noise is drawn anew, as a node draws it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from fedgraft.client.node_task import NodeTask, open_splits, working_model
from fedgraft.client.sum_round import list_features
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.common.privacy.discrete_noise import draw_discrete_gaussian
from fedgraft.common.privacy.noise_search import noise_for
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.statistics.noisy_sums import NoisySums, sigma_of, sum_units
from fedgraft.common.tasks.class_head import NOISY
from fedgraft.simulations.benchmarks.result_files import ResultTable, record
from fedgraft.simulations.engines.engine import nodes_on_disk
from fedgraft.simulations.engines.simulated_node import load_simulated_node

PLAN = "pneumonia-one-round"
DELTA = 1e-5
EPSILONS = (8.0, 3.0, 1.0, 0.5, 0.25)
HOSPITALS = 8


@dataclass(frozen=True)
class Features:
    """Features of norm 1 `(n, d)` and classes `(n,)`, of training and of test records."""

    train: np.ndarray
    train_labels: torch.Tensor
    test: np.ndarray
    test_labels: np.ndarray


def compute_features() -> Features:
    """Return the features of all records, by the code of a node."""
    overrides = ["privacy.mode=sample", "privacy.target_epsilon=1", "simulation.nodes=1"]
    overrides += ["simulation.partition={kind: iid}", "aggregate.min_nodes=1"]
    plan = load_plan(PLAN, overrides)
    path = find_plan(PLAN)
    torch.set_num_threads(1)
    backbone = plan_backbone(plan, path.parent)
    with nodes_on_disk(plan, path) as nodes:
        node = load_simulated_node(nodes[0])
        train, test = open_splits(node, plan, backbone.preprocess)
        model = working_model(backbone, plan)
        task = NodeTask(node.name, plan, model, train, test, backbone.fingerprint)
        found = [features for _, features in list_features(*task.for_training())]
        tests = [features for _, features in list_features(*task.for_tests())]
    return Features(np.concatenate(found), train.labels, np.concatenate(tests), test.labels.numpy())


def draw_results(
    features: Features, epsilon: float, shares: str, noises: int, draws: int, *, first: int = 0
) -> Iterator[tuple[float, float]]:
    """Yield accuracy and AUROC of the head for each draw of the noise, numbered from `first`."""
    task = load_plan(PLAN).task
    codes = NOISY.codes(features.train_labels, task, shares)
    counted = NOISY.counted(features.train_labels, task, shares)
    exact = sum_units(features.train, codes, counted, np.ones(len(codes)))
    sigma = sigma_of(noise_for(epsilon, DELTA, 1.0, 1))
    for draw in range(first, first + draws):
        noisy: NoisySums = exact
        for number in range(noises):
            randomness = Randomness(f"one-round/{draw}/{number}".encode())
            draw_noise = partial(draw_discrete_gaussian, randomness=randomness)
            noisy = noisy.with_noise(sigma, draw_noise)
        weights, bias = NOISY.head(noisy, task, shares, "shares")
        logits = features.test @ weights.T + bias
        score = logits[:, 1] - logits[:, 0]
        right = float(((score > 0) == features.test_labels).mean())
        yield right, float(roc_auc_score(features.test_labels, score))


def main() -> None:
    """Print the table and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=10)
    draws = parser.parse_args().draws
    features = compute_features()
    table = ResultTable(
        ("class shares", "noise", *(f"ε = {each:g}" for each in EPSILONS)), words=(0, 1)
    )
    for shares in ("equal", "counted"):
        for noises, where in ((HOSPITALS, "at each hospital"), (1, "one for all")):
            cells = []
            for epsilon in EPSILONS:
                results = np.array([*draw_results(features, epsilon, shares, noises, draws)])
                accuracy, auroc = results.mean(0)
                cells.append(f"{accuracy:.3f} ({results[:, 0].min():.3f}) / {auroc:.3f}")
            table.add(shares, where, *cells)
    print(table.to_markdown())
    notes = [f"{PLAN}, δ = {DELTA:g}; mean of {draws} draws: accuracy (the least of them) / AUROC"]
    record("one-round", "noise", table, notes=notes)


if __name__ == "__main__":
    main()
