"""Runs on real chest X-rays for attacks to try: one planted to leak, or what overrides make of it.

with finish_run(folder, PRIVATE) as finished:
    finished.attack("lira")
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.attacks import ATTACKS
from fedgraft.simulations.engines.engine import nodes_on_disk, simulate

XRAYS = "../shared/data/pneumoniamnist.npz"
WEIGHTS = "../shared/data/weights/cifar10_resnet20.safetensors"
PLANTED = f"""
name: xrays
task: {{kind: image-classification, classes: [normal, pneumonia]}}
backbone: {{name: cifar-resnet20, weights: {WEIGHTS}, image_size: 8}}
adapter: {{method: full}}
train: {{rounds: 3, local_epochs: 25, batch_size: 24, optimizer: {{name: adamw, lr: 1.0e-3}}}}
evaluate: {{every: 100}}
seed: 3
simulation: {{nodes: 2, data: xrays.npz, partition: {{kind: iid}}}}
"""
PRIVATE = (
    "adapter.method=head",
    "train.optimizer.lr=0.01",
    "train.local_epochs=5",
    "privacy={mode: sample, target_epsilon: 1, delta: 1.0e-3}",
)
SHORT = ("train.rounds=1", "train.local_epochs=1")
MEMBERS = 48
OTHERS = 400
WRONG = 0.3
TESTS = 20


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, as an attack takes it."""

    plan: Plan
    run: Path
    nodes: list[Path]

    def attack(self, name: str) -> dict[str, Any]:
        """Return what an attack measures."""
        return ATTACKS[name](self.plan, self.run, self.nodes, 0)


@contextmanager
def finish_run(
    folder: Path, overrides: Sequence[str] = (), members: int = MEMBERS
) -> Iterator[FinishedRun]:
    """Yield a run of the planted plan, or of what the overrides make of it, and its nodes."""
    write_few_xrays(folder / "xrays.npz", members)
    plan_file = folder / "plan.yaml"
    plan_file.write_text(PLANTED)
    plan = load_plan(plan_file, overrides)
    with nodes_on_disk(plan, plan_file) as nodes:
        simulate(plan, plan_file, folder / "run", nodes=nodes)
        yield FinishedRun(plan, folder / "run", nodes)


def write_few_xrays(path: Path, members: int) -> None:
    """Write a cut of the real training split in which a share of the labels is wrong, as in records
    coded in a hurry.

    Wrong labels cannot be learnt but by heart. Raises `UserError` where the X-rays are not there.
    """
    rng = np.random.default_rng(0)
    real = np.load(resolve(XRAYS, None))
    order = rng.permutation(len(real["train_labels"]))
    wrong = rng.random(len(order)) < WRONG
    labels = real["train_labels"].ravel() ^ wrong
    trained = members + OTHERS
    rows_by_split = {
        "train": order[:members],
        "val": order[members:trained],
        "test": order[trained : trained + TESTS],
    }
    arrays = {}
    for split, rows in rows_by_split.items():
        arrays[f"{split}_images"] = real["train_images"][rows]
        arrays[f"{split}_labels"] = labels[rows]
    np.savez(path, **arrays)


def choose_settings(size: int, private: bool) -> tuple[str, ...]:
    """Return what makes a run whose gradients are inverted, on images of this size: at the model
    that every node starts from, so training is short.
    """
    settings = PRIVATE if private else SHORT
    return (f"backbone.image_size={size}", *settings)
