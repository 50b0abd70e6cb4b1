"""Two federations on real chest X-rays: one planted to leak, one under differential privacy at ε = 1."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from common.plan import Plan
from common.plan_file import load_plan
from simulations.engine import nodes_on_disk, simulate

DATA = Path(os.environ.get("FEDGRAFT_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
PLAN = """
name: xrays
task: {kind: image-classification, classes: [normal, pneumonia]}
backbone: {name: cifar-resnet20, weights: WEIGHTS, image_size: 8}
adapter: {method: full}
train: {rounds: 3, local_epochs: 25, batch_size: 24, optimizer: {name: adamw, lr: 1.0e-3}}
evaluate: {every: 100}
seed: 3
simulation: {nodes: 2, data: xrays.npz, partition: {kind: iid}}
"""
PRIVATE = (
    "adapter.method=head",
    "train.optimizer.lr=0.01",
    "train.local_epochs=5",
    "privacy={mode: sample, target_epsilon: 1, delta: 1.0e-3}",
)


UNLIKE = (  # six nodes with shares of their own of pneumonia
    "adapter.method=head",
    "train={rounds: 2, local_epochs: 2, batch_size: 10, optimizer: {name: sgd, lr: 0.05, momentum: 0.0}}",
    "simulation.nodes=6",
    "simulation.partition={kind: dirichlet, alpha: 0.8, min_examples: 20}",
)


@dataclass(frozen=True)
class Cell:
    """A finished run, as a study hands it to an attack."""

    plan: Plan
    run: Path
    nodes: list[Path]


def few_xrays(path: Path, members: int, others: int, wrong: float) -> None:
    """A cut of the real training split in which a share of the labels is wrong, as in records coded in a hurry.

    Wrong labels cannot be learnt but by heart.
    """
    file = DATA / "pneumoniamnist.npz"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    rng, real = np.random.default_rng(0), np.load(file)
    order = rng.permutation(len(real["train_labels"]))
    labels = real["train_labels"].ravel() ^ (rng.random(len(order)) < wrong)
    mine, rest, test = order[:members], order[members : members + others], np.arange(members + others, len(order))[:20]
    arrays = {}
    for name, rows in (("train", mine), ("val", rest), ("test", order[test])):
        arrays |= {f"{name}_images": real["train_images"][rows], f"{name}_labels": labels[rows]}
    np.savez(path, **arrays)


def run_cell(folder: Path, overrides: tuple[str, ...] = (), members: int = 48) -> Iterator[Cell]:
    weights = DATA / "weights" / "cifar10_resnet20.safetensors"
    few_xrays(folder / "xrays.npz", members=members, others=400, wrong=0.3)
    path = folder / "plan.yaml"
    path.write_text(PLAN.replace("WEIGHTS", str(weights)))
    plan = load_plan(path, overrides)
    with nodes_on_disk(plan, path) as nodes:
        simulate(plan, path, folder / "run", nodes=nodes)
        yield Cell(plan, folder / "run", nodes)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    """Everything trained on 24 images a node, for long, without privacy."""
    yield from run_cell(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    """The same images under differential privacy, ε = 1."""
    yield from run_cell(tmp_path_factory.mktemp("private"), PRIVATE)


@pytest.fixture(scope="session")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    """Six nodes with unequal shares of the classes, without privacy."""
    yield from run_cell(tmp_path_factory.mktemp("unlike"), UNLIKE, members=300)


@pytest.fixture(scope="session")
def unlike_private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    """The same nodes, each record hidden: ε = 1 for an example."""
    yield from run_cell(tmp_path_factory.mktemp("unlike-private"), (*UNLIKE, PRIVATE[-1]), members=300)


@pytest.fixture(scope="session")
def unlike_hidden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    """The same nodes, each update hidden as a whole: ε = 1 for a node."""
    local = "privacy={mode: local, target_epsilon: 1, delta: 1.0e-3}"
    yield from run_cell(tmp_path_factory.mktemp("unlike-hidden"), (*UNLIKE, local), members=300)
