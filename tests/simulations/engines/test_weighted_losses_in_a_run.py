"""Runs that turn to a rare class: by weights of the plan or of a node's own labels, by the focal
loss; plain and under DP-SGD.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedgraft
from fedgraft.run import Run

PLAN = """
name: rare
task:
  kind: tabular-classification
  classes: [stays, returns]
  columns: [a, b]
  ranges: [{columns: [a, b], low: -3, high: 3}]
backbone: {name: mlp, hidden: [8]}
adapter: {method: full}
train: {rounds: 4, optimizer: {lr: 0.03}}
evaluate: {metrics: [auprc, sensitivity, specificity, sensitivity_at_90, loss]}
simulation: {nodes: 3, data: table.csv, partition: {kind: iid}, test_fraction: 0.3}
seed: 2
"""
PRIVATE = {"privacy.mode": "sample", "privacy.target_epsilon": 8}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Readmissions, one in ten, of which even odds find hardly any."""
    rng = np.random.default_rng(0)
    lines = ["a,b,target"]
    for _ in range(3000):
        label = int(rng.random() < 0.1)
        a, b = rng.normal(size=2) + 0.8 * label
        lines.append(f"{a:.4f},{b:.4f},{label}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path / "plan.yaml"


def measure(plan: Path, out: Path, **changes: Any) -> dict[str, float]:
    run = fedgraft.simulate(plan, set=changes, out=out, progress=False)
    assert isinstance(run, Run)
    return {str(key): float(value) for key, value in run.metrics.loc["shared model"].items()}


@pytest.mark.parametrize("private", [{}, PRIVATE], ids=["plain", "private"])
def test_weights_find_the_rare(plan: Path, tmp_path: Path, private: dict[str, Any]) -> None:
    """A key that a plan may write, and that no step reads."""
    even = measure(plan, tmp_path / "even", **private)
    stated = {"train.class_weights": [1, 9]}
    weighted = measure(plan, tmp_path / "weighted", **stated, **private)
    assert even["sensitivity"] < 0.3
    assert weighted["sensitivity"] > even["sensitivity"] + 0.3
    assert weighted["specificity"] > 0.6
    # the order of people is much the same
    assert weighted["auprc"] == pytest.approx(even["auprc"], abs=0.1)


def test_a_nodes_own_shares_do_the_same(plan: Path, tmp_path: Path) -> None:
    """Inverse shares that are of the wrong class."""
    own = measure(plan, tmp_path / "own", **{"train.class_weights": "inverse"})
    assert own["sensitivity"] > 0.5


@pytest.mark.parametrize("private", [{}, PRIVATE], ids=["plain", "private"])
def test_the_focal_loss_is_learnt_by(plan: Path, tmp_path: Path, private: dict[str, Any]) -> None:
    """A loss that DP-SGD cannot part, or that goes the wrong way."""
    changes = {"train.loss": "focal", "train.class_weights": [1, 9]}
    focal = measure(plan, tmp_path / "focal", **changes, **private)
    assert focal["sensitivity"] > 0.5
    assert focal["auprc"] > 0.2


def test_a_round_may_be_chosen_by_what_a_plan_asks_for(plan: Path, tmp_path: Path) -> None:
    """A choice by a measure that validation records are not measured by."""
    changes = {
        "train.keep": "best",
        "train.choose_by": "auprc",
        "evaluate.validation_fraction": 0.3,
    }
    run = fedgraft.simulate(plan, set=changes, out=tmp_path / "run", progress=False)
    assert isinstance(run, Run)
    validation = run.result.validation
    assert validation is not None
    best = max(row.metrics["auprc"] for row in validation.rounds)
    assert validation.value_of(validation.best) == best
