"""A card computes what the processor computes: `make gpu`, on a machine that has one.

In float32 and with the same noise, an update is the processor's within 1e-4 of its norm, and two
rounds on one card are the same bits.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgraft.client.node.node_file import load_node
from fedgraft.client.node_task import NodeTask, open_splits, working_model
from fedgraft.client.round import measure, run_round
from fedgraft.client.sum_round import sum_split
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.model.devices import find_device, prepare_device
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.attacks.unrecorded_budget import UnrecordedBudget

PLAN = """
name: card
task: {kind: image-classification, classes: [five, six, seven], labels: [5, 6, 7]}
backbone: {name: cifar-resnet8, image_size: 16}
adapter: {method: lora, targets: last-block, rank: 2}
train: {rounds: 2, local_epochs: 1, batch_size: 24, optimizer: {lr: 1.0e-2}}
"""
PRIVATE = ("privacy.mode=sample", "privacy.target_epsilon=8", "privacy.delta=1e-3")
NODE = "name: n\ndata: {path: 'sklearn:digits'}\nstore: store\ncache: {enabled: false}\n"
# of the update's norm
TOLERANCE = 1e-4
ON_CARD = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no card: make gpu"),
]
DEVICES = [pytest.param("cuda", marks=ON_CARD), "cpu"]
WAYS = {
    "head": ("adapter.method=head", "adapter.targets=auto"),
    "LoRA": (),
    "LoRA everywhere": ("adapter.targets=auto",),
    "bottleneck": ("adapter.method=bottleneck",),
    "resnet18": ("backbone.name=resnet18", "backbone.image_size=32"),
    "vit_b_16": ("backbone.name=vit_b_16", "backbone.image_size=32"),
    "private head": ("adapter.method=head", "adapter.targets=auto", *PRIVATE),
    "private LoRA": PRIVATE,
    "ghost": (*PRIVATE, "privacy.grad_sample_mode=ghost"),
}


def open_task(folder: Path, overrides: tuple[str, ...], device: str) -> NodeTask:
    """Return what a node works on, on a device, with noise from the plan's seed."""
    folder.mkdir(exist_ok=True)
    (folder / "plan.yaml").write_text(PLAN)
    (folder / "node.yaml").write_text(NODE)
    plan = load_plan(folder / "plan.yaml", overrides)
    node = load_node(folder / "node.yaml")
    backbone = plan_backbone(plan, folder)
    train, test = open_splits(node, plan, backbone.preprocess)
    model = working_model(backbone, plan)
    fingerprint = model.seal_as(backbone)
    chosen = find_device(device)
    prepare_device(chosen, tf32=False)
    task = NodeTask(node.name, plan, model.move_to(chosen), train, test, fingerprint)
    if plan.privacy.at_node:
        task = replace(task, budget=UnrecordedBudget.open(node, plan, train))
    return task


def train_round(task: NodeTask) -> Tensor:
    """Return the update of a round, flat."""
    received = {name: value + 0.01 for name, value in task.model.adapter_state().items()}
    state = run_round(task, received, 1).state
    return torch.cat([(state[name] - received[name]).flatten() for name in received])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
def test_an_update_is_the_processors(way: str, device: str, tmp_path: Path) -> None:
    """A card that trains something else: TF32, another draw of the noise, a forgotten tensor."""
    here = train_round(open_task(tmp_path / "here", WAYS[way], "cpu"))
    there = open_task(tmp_path / "there", WAYS[way], device)
    update = train_round(there)
    assert float((update - here).norm()) <= TOLERANCE * float(here.norm())
    assert torch.equal(train_round(open_task(tmp_path / "again", WAYS[way], device)), update)


@pytest.mark.parametrize("device", DEVICES)
def test_blocks_of_a_batch_change_nothing_but_last_bits(device: str, tmp_path: Path) -> None:
    whole = train_round(open_task(tmp_path, (), device))
    parts = train_round(replace(open_task(tmp_path, (), device), block=5))
    assert float((parts - whole).norm()) <= TOLERANCE * float(whole.norm())


@pytest.mark.parametrize("device", DEVICES)
def test_sums_and_metrics_are_the_processors(device: str, tmp_path: Path) -> None:
    """Sums that a card adds up, or metrics of other outputs."""
    closed = ("adapter.method=head", "adapter.targets=auto", "train.method=closed-form")
    overrides = (*closed, "train.rounds=1")
    here = open_task(tmp_path / "here", overrides, "cpu")
    there = open_task(tmp_path / "there", overrides, device)
    gram = np.asarray(sum_split(here).gram, dtype=np.float64)
    other = np.asarray(sum_split(there).gram, dtype=np.float64)
    assert np.linalg.norm(other - gram) <= TOLERANCE * np.linalg.norm(gram)
    state = here.model.adapter_state()
    state["depth_head.weight"] += 0.1 * torch.arange(state["depth_head.weight"].numel()).view_as(
        state["depth_head.weight"]
    )
    mine = measure(here, state).summary()
    theirs = measure(there, state).summary()
    assert theirs["examples"] == mine["examples"]
    assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-3)
