"""A table whose columns nothing scales is refused at every door, and learnt where the plan says
between which values its numbers lie.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score

import fedgraft
from fedgraft.common.errors import UserError
from fedgraft.common.model.assembly import check_scales
from fedgraft.common.plan.plan_file import load_plan
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


def test_two_things_that_scale_it(plan: Path) -> None:
    """Weights bring their own scales; ranges beside them would be read by nobody."""
    both = load_plan(plan, [f"task.ranges={RANGES}", "backbone.weights=credit.safetensors"])
    with pytest.raises(UserError, match="bring scales of their own"):
        check_scales(both)
    with pytest.raises(UserError, match="missing for age"):
        load_plan(plan, ["task.ranges=[{columns: [income], low: 0, high: 200000}]"])
