"""A table whose columns nothing scales is refused at every door, and learnt where all hospitals
tell mean and deviation, or the plan says between which values its numbers lie.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

import fedgraft
from fedgraft.client.node.approval_words import in_words
from fedgraft.client.node.approve import propose
from fedgraft.client.node.node_file import Node
from fedgraft.client.node_task import open_splits
from fedgraft.common.backbones.mlp_network import LearntStandardise
from fedgraft.common.errors import UserError
from fedgraft.common.model.assembly import check_scales, plan_backbone
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.engines.simulated_node import load_simulated_node
from fedgraft.simulations.simulated_nodes import write_nodes
from fedgraft.simulations.try_plan import try_plan

PLAN = """
name: credit
task:
  kind: tabular-classification
  classes: [paid, default]
  columns: [income, age]
backbone: {name: mlp, hidden: [16]}
adapter: {method: lora, rank: 4}
train: {rounds: 10, local_epochs: 3, batch_size: 32, optimizer: {lr: 1.0e-2}}
simulation: {nodes: 2, data: credit.csv, partition: {kind: iid}}
"""
RANGES = "[{columns: [income], low: 0, high: 200000}, {columns: [age], low: 18, high: 90}]"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan without weights or ranges, and 800 debtors: the young and the poor default."""
    rng = np.random.default_rng(0)
    income = rng.uniform(0, 200_000, 800)
    age = rng.uniform(18, 90, 800)
    risk = (54 - age) / 20 + (1e5 - income) / 6e4 + rng.logistic(size=800)
    lines = ["income,age,target"]
    for row in range(800):
        lines.append(f"{income[row]:.0f},{age[row]:.0f},{int(risk[row] > 0)}")
    (tmp_path / "credit.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path / "plan.yaml"


def test_nothing_scales_it(plan: Path, tmp_path: Path) -> None:
    """It ran, at an AUROC below that of one column alone, and nobody said why."""
    with pytest.raises(UserError, match="nothing scales its columns") as caught:
        fedgraft.simulate(plan, out=tmp_path / "run", progress=False)
    assert "start: standardise" in caught.value.remedy
    assert "task.ranges: [{columns: [income], low: LEAST, high: LARGEST}]" in caught.value.remedy
    assert not (tmp_path / "run").exists()
    found = list(try_plan(load_plan(plan), plan))
    assert [finding.what for finding in found if finding.is_wrong] == ["backbone"]


def test_ranges_of_the_plan_scale_it(plan: Path, tmp_path: Path) -> None:
    """Ranges that are read, and change nothing."""
    changes = {"task.ranges": yaml.safe_load(RANGES)}
    run = fedgraft.simulate(plan, set=changes, out=tmp_path / "run", progress=False)
    # the best that there is: the risk itself
    table = pd.read_csv(plan.with_name("credit.csv"))
    risk = (54 - table["age"]) / 20 + (1e5 - table["income"]) / 6e4
    best = roc_auc_score(table["target"], risk)
    assert run.metrics.loc["shared model", "auroc"] > best - 0.06
    assert run.metrics.loc["shared model", "loss"] < 0.6


def test_all_hospitals_tell_mean_and_deviation(plan: Path, tmp_path: Path) -> None:
    """Scales of one hospital, or that steps moved, or that were lost on the way to disk."""
    # the old at one hospital, the rich at the other
    table = pd.read_csv(plan.with_name("credit.csv"))
    table.sort_values("age").to_csv(plan.with_name("credit.csv"), index=False)
    changes = {
        "train.start": "standardise",
        "train.optimizer.weight_decay": 0.1,
        "simulation.partition.kind": "dirichlet",
        "simulation.partition.alpha": 0.3,
    }
    run = fedgraft.simulate(plan, set=changes, out=tmp_path / "run", progress=False)
    risk = (54 - table["age"]) / 20 + (1e5 - table["income"]) / 6e4
    best = roc_auc_score(table["target"], risk)
    assert run.metrics.loc["shared model", "auroc"] > best - 0.06
    assert run.metrics.loc["shared model", "loss"] < 0.6

    chosen = load_plan(plan, [f"{key}={value}" for key, value in changes.items()])
    # as they were dealt to the run
    nodes = write_nodes(chosen, plan, tmp_path / "nodes")
    rows = torch.cat([_training_rows(load_simulated_node(node), chosen, plan) for node in nodes])
    scales = load_shared_model(tmp_path / "run").model.net.standardise
    assert isinstance(scales, LearntStandardise)
    # a value is rounded to eight significant bits before it is counted
    mean, deviation = scales.values()
    np.testing.assert_allclose(mean, rows.double().mean(0), rtol=2e-3)
    np.testing.assert_allclose(deviation, rows.double().std(0, unbiased=False), rtol=2e-3)
    scaled = scales(rows)[:, :2]
    np.testing.assert_allclose(scaled.mean(0), 0, atol=5e-3)
    np.testing.assert_allclose(scaled.std(0), 1, rtol=5e-3)


def _training_rows(node: Node, plan: Plan, path: Path) -> torch.Tensor:
    backbone = plan_backbone(plan, path.parent)
    train, _ = open_splits(node, plan, backbone.preprocess)
    return train.inputs(torch.arange(len(train))).only


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["privacy={mode: sample, target_epsilon: 1}"], "write task.ranges instead"),
        ([f"task.ranges={RANGES}"], "task.ranges scale the columns"),
        (["train.rounds=1"], "that one is for the scales"),
        (["backbone.name=columns", "train.method=closed-form"], "scales its own inputs"),
    ],
)
def test_a_round_of_scales_that_cannot_be(plan: Path, changes: list[str], words: str) -> None:
    """Histograms that were told for nothing, or without noise where noise was promised."""
    with pytest.raises(UserError, match=words):
        load_plan(plan, ["train.start=standardise", *changes])


def test_who_approves_reads_that_values_leave(plan: Path, tmp_path: Path) -> None:
    """Histograms that leave a hospital that approved steps."""
    chosen = load_plan(plan, ["train.start=standardise"])
    path, _ = write_nodes(chosen, plan, tmp_path / "nodes")
    node = load_simulated_node(path)
    words = in_words(node, propose(node, chosen, None))
    assert "9 of 10 rounds are training" in words
    assert "the first for histograms" in words
    assert "how often each value occurs" in words


def test_two_things_that_scale_it(plan: Path) -> None:
    """Weights bring their own scales; ranges beside them would be read by nobody."""
    both = load_plan(plan, [f"task.ranges={RANGES}", "backbone.weights=credit.safetensors"])
    with pytest.raises(UserError, match="bring scales of their own"):
        check_scales(both)
    both = load_plan(plan, ["train.start=standardise", "backbone.weights=credit.safetensors"])
    with pytest.raises(UserError, match="bring scales of their own"):
        check_scales(both)
    with pytest.raises(UserError, match="missing for age"):
        load_plan(plan, ["task.ranges=[{columns: [income], low: 0, high: 200000}]"])
