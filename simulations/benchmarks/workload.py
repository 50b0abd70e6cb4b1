"""The work that every competitor does: 10 nodes × 20 rounds × 1 local epoch of a ResNet-20 on chest
X-rays.

The plan `pneumonia` with an IID split. `prepare` deals the data once and writes each node's inputs,
shuffled and prepared for the backbone, into one file; everyone but fedgraft reads that file and is
not timed at preparing images.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
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
NODES, ROUNDS, BATCH, RATE = 10, 20, 32, 1e-3
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


def overrides(adapter: str, seed: int, *, nodes: int = NODES, rounds: int = ROUNDS) -> list[str]:
    """What is set over the plan: the adapter ("head", "lora" in the last block, "full"), the seed,
    the sizes.
    """
    return [
        f"adapter={ADAPTERS[adapter]}",
        f"seed={seed}",
        (
            f"train={{rounds: {rounds}, local_epochs: 1, batch_size: {BATCH}, optimizer: {{name:"
            f" adamw, lr: {RATE}}}}}"
        ),
        f"simulation.nodes={nodes}",
        "simulation.partition={kind: iid}",
    ]


def the_plan(adapter: str, seed: int, **sizes: int) -> Plan:
    """The plan of the workload."""
    return load_plan(PLAN, overrides(adapter, seed, **sizes))


def new_model(adapter: str, seed: int) -> GraftedModel:
    """The grafted model with the plan's own initial values."""
    plan = the_plan(adapter, seed)
    return plan_model(plan_backbone(plan, find_plan(PLAN).parent), plan)


def prepare(folder: Path, seed: int) -> Path:
    """Deal the data as the plan does; write `shards-SEED.npz`, unless it is there. Returns its
    path.
    """
    from fedgraft.client.node.node_file import load_node
    from fedgraft.client.node_task import open_splits
    from fedgraft.simulations.simulated_nodes import write_nodes

    path = folder / f"shards-{seed}.npz"
    if path.exists():
        return path
    plan = the_plan("head", seed)
    preprocess = plan_backbone(plan, find_plan(PLAN).parent).preprocess
    arrays = {}
    with tempfile.TemporaryDirectory() as nodes:
        for number, node in enumerate(write_nodes(plan, find_plan(PLAN), Path(nodes))):
            for name, split in zip(
                ("train", "test"), open_splits(load_node(node), plan, preprocess), strict=True
            ):
                order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
                arrays[f"{name}-inputs-{number}"] = split.inputs(order).only.numpy()
                arrays[f"{name}-labels-{number}"] = split.labels[order].numpy()
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part-{path.name}")
    np.savez(part, **arrays)  # pyright: ignore[reportArgumentType]
    part.replace(path)
    return path


def load_shards(path: Path) -> list[Shard]:
    """Every node's data."""
    with np.load(path) as arrays:
        count = len(arrays.files) // 4
        names = ("train-inputs", "train-labels", "test-inputs", "test-labels")
        return [
            Shard(*(torch.from_numpy(arrays[f"{name}-{k}"]) for name in names))
            for k in range(count)
        ]


def load_shard(path: Path, number: int) -> Shard:
    """One node's data, without reading the others'."""
    names = ("train-inputs", "train-labels", "test-inputs", "test-labels")
    with np.load(path) as arrays:
        return Shard(*(torch.from_numpy(arrays[f"{name}-{number}"]) for name in names))


@torch.no_grad()
def correct(model: torch.nn.Module, inputs: Tensor, labels: Tensor) -> int:
    """How many are classified correctly."""
    batches = zip(
        torch.split(inputs, EVALUATION_BATCH), torch.split(labels, EVALUATION_BATCH), strict=True
    )
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)


def accuracy(model: torch.nn.Module, shards: Sequence[Shard]) -> float:
    """Share of all nodes' test examples that is classified correctly."""
    right = sum(correct(model, shard.test_inputs, shard.test_labels) for shard in shards)
    return right / sum(len(shard.test_labels) for shard in shards)


def report(**found: Any) -> None:
    """What a competitor prints last: one line of JSON with its accuracy, the seconds of its rounds,
    its versions.
    """
    print(json.dumps(found), flush=True)
