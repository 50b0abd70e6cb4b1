"""The work that every competitor does: 10 nodes × 20 rounds × 1 local epoch of a ResNet-20 on chest
X-rays.

The plan `pneumonia` with an IID split. `prepare` deals the data once and writes each node's inputs,
shuffled and prepared for the backbone, into one file; everyone but fedgraft reads that file and is
not timed at preparing images.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.model.assembly import plan_backbone, plan_model
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import find_plan, load_plan

PLAN = "pneumonia"
NODES = 10
ROUNDS = 20
BATCH = 32
RATE = 1e-3
EVALUATION_BATCH = 256
ADAPTERS = {
    "head": "{method: head}",
    "lora": "{method: lora, rank: 8, alpha: 16, targets: last-block}",
    "full": "{method: full}",
}


@dataclass(frozen=True, eq=False)
class Shard:
    """One node's data: inputs float32 `(n, 3, 32, 32)`, labels int64 `(n,)`."""

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


# ── the plan ──────────────────────────────────────────────────────────────────────────────────────
def overrides(adapter: str, seed: int, *, nodes: int = NODES, rounds: int = ROUNDS) -> list[str]:
    """Return what is set over the plan: the adapter ("head", "lora" in the last block, "full"), the
    seed, the sizes.
    """
    optimizer = f"{{name: adamw, lr: {RATE}}}"
    training = f"rounds: {rounds}, local_epochs: 1, batch_size: {BATCH}, optimizer: {optimizer}"
    return [
        f"adapter={ADAPTERS[adapter]}",
        f"seed={seed}",
        f"train={{{training}}}",
        f"simulation.nodes={nodes}",
        "simulation.partition={kind: iid}",
    ]


def load_workload(adapter: str, seed: int, **sizes: int) -> Plan:
    """Return the plan of the workload."""
    return load_plan(PLAN, overrides(adapter, seed, **sizes))


def new_model(adapter: str, seed: int) -> GraftedModel:
    """Return the grafted model with the plan's own initial values."""
    plan = load_workload(adapter, seed)
    return plan_model(plan_backbone(plan, find_plan(PLAN).parent), plan)


# ── the data ──────────────────────────────────────────────────────────────────────────────────────
def prepare(folder: Path, seed: int) -> Path:
    """Deal the data as the plan does; write `shards-SEED.npz`, unless it is there. Return its
    path.
    """
    path = folder / f"shards-{seed}.npz"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part-{path.name}")
    np.savez(part, **_deal(seed))  # pyright: ignore[reportArgumentType]
    part.replace(path)
    return path


def _deal(seed: int) -> dict[str, np.ndarray]:
    """Return every node's inputs and labels, shuffled, by names such as `train-inputs-3`."""
    # here: competitors load this file in environments that lack what a node needs
    from fedgraft.client.node.node_file import load_node
    from fedgraft.client.node_task import open_splits
    from fedgraft.simulations.simulated_nodes import write_nodes

    plan = load_workload("head", seed)
    plan_path = find_plan(PLAN)
    preprocess = plan_backbone(plan, plan_path.parent).preprocess
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(write_nodes(plan, plan_path, Path(folder))):
            train, test = open_splits(load_node(file), plan, preprocess)
            for name, split in (("train", train), ("test", test)):
                generator = torch.Generator().manual_seed(seed)
                order = torch.randperm(len(split), generator=generator)
                arrays[f"{name}-inputs-{number}"] = split.inputs(order).only.numpy()
                arrays[f"{name}-labels-{number}"] = split.labels[order].numpy()
    return arrays


def load_shards(path: Path) -> list[Shard]:
    """Return every node's data."""
    with np.load(path) as arrays:
        nodes = len(arrays.files) // 4
        return [_read_shard(arrays, number) for number in range(nodes)]


def load_shard(path: Path, number: int) -> Shard:
    """Return one node's data, without reading the others'."""
    with np.load(path) as arrays:
        return _read_shard(arrays, number)


def _read_shard(arrays: Mapping[str, np.ndarray], number: int) -> Shard:
    return Shard(
        train_inputs=torch.from_numpy(arrays[f"train-inputs-{number}"]),
        train_labels=torch.from_numpy(arrays[f"train-labels-{number}"]),
        test_inputs=torch.from_numpy(arrays[f"test-inputs-{number}"]),
        test_labels=torch.from_numpy(arrays[f"test-labels-{number}"]),
    )


# ── what is measured ──────────────────────────────────────────────────────────────────────────────
@torch.no_grad()
def correct(model: torch.nn.Module, inputs: Tensor, labels: Tensor) -> int:
    """Return how many are classified correctly."""
    right = 0
    for start in range(0, len(inputs), EVALUATION_BATCH):
        end = start + EVALUATION_BATCH
        answers = model(inputs[start:end]).argmax(1)
        right += int((answers == labels[start:end]).sum())
    return right


def accuracy(model: torch.nn.Module, shards: Sequence[Shard]) -> float:
    """Return the share of all nodes' test examples that is classified correctly."""
    right = 0
    total = 0
    for shard in shards:
        right += correct(model, shard.test_inputs, shard.test_labels)
        total += len(shard.test_labels)
    return right / total


def report(**measured: Any) -> None:
    """Print what a competitor prints last: one line of JSON with its accuracy, the seconds of its
    rounds, its versions.
    """
    print(json.dumps(measured), flush=True)
