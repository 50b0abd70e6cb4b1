"""Federations that predict when an event comes: one round, steps, under privacy; and what of the
data or the plan cannot be.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedgraft
from fedgraft.common.errors import UserError
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.run import Run
from fedgraft.simulations.predict import predict

PLAN = """
name: survival
task:
  kind: tabular-survival
  columns: [a, b]
  targets: [days, died]
  survival: {cuts: [2, 5, 10, 20], unit: days}
backbone: {name: columns}
adapter: {method: head}
train: {method: closed-form}
simulation: {data: [x.csv, y.csv, z.csv], partition: {kind: files}, test_fraction: 0.3}
seed: 2
"""
STEPS = {
    "backbone": {"name": "mlp", "hidden": [16]},
    "adapter": {"method": "full"},
    "train": {"rounds": 4, "local_epochs": 2, "optimizer": {"lr": 0.01}},
    "task.ranges": [{"columns": ["a", "b"], "low": -3, "high": 3}],
}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Three hospitals whose people die sooner the larger a, and b has no say; a third are lost."""
    rng = np.random.default_rng(0)
    for name in ("x", "y", "z"):
        lines = ["a,b,days,died"]
        for _ in range(400):
            a, b = rng.normal(size=2)
            died = rng.exponential(8 * math.exp(-a))
            left = rng.exponential(15)
            lines.append(f"{a:.4f},{b:.4f},{min(died, left):.4f},{int(died <= left)}")
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path / "plan.yaml"


def simulate(plan: Path, out: Path, **changes: Any) -> Run:
    run = fedgraft.simulate(plan, set=changes, out=out, progress=False)
    assert isinstance(run, Run)
    return run


def read(run: Run, name: str) -> float:
    return float(run.metrics.loc["shared model", name])


def test_one_round_finds_who_dies_sooner(plan: Path, tmp_path: Path) -> None:
    """Sums that another step of the run takes for those of classes; curves that rise; papers that
    speak of accuracy.
    """
    run = simulate(plan, tmp_path / "run")
    assert read(run, "concordance") > 0.68
    assert read(run, "brier") < 0.2
    assert run.result.question == "survival"

    predict(tmp_path / "run", plan.with_name("x.csv"), tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 400
    for row in rows:
        curve = [float(row[f"without event at {cut} days"]) for cut in (2, 5, 10, 20)]
        assert curve == sorted(curve, reverse=True)
        if curve[-1] > 0.5:
            assert row["median"] == "after 20 days"
        else:
            assert row["median"].endswith(" days")
    card = (tmp_path / "run/shared_model/MODEL_CARD.md").read_text()
    assert "concordance" in card.lower()
    assert "accuracy" not in card.lower()
    page = (tmp_path / "run/report.html").read_text()
    assert "Brier score" in page


@pytest.mark.slow
def test_the_shared_model_does_not_depend_on_the_deal(plan: Path, tmp_path: Path) -> None:
    """One round that is another one where a hospital has the early deaths."""
    lines = []
    for name in ("x", "y", "z"):
        lines += plan.with_name(f"{name}.csv").read_text().splitlines()[1:]
    plan.with_name("all.csv").write_text("\n".join(["a,b,days,died", *lines]) + "\n")
    bits = []
    for nodes in (2, 5):
        changes = {
            "simulation": {"data": "all.csv", "nodes": nodes, "partition": {"kind": "iid"}},
        }
        simulate(plan, tmp_path / f"run-{nodes}", **changes)
        folder = tmp_path / f"run-{nodes}/shared_model"
        bits.append((folder / "adapter_model.safetensors").read_bytes())
    assert bits[0] == bits[1]


@pytest.mark.slow
def test_steps_and_noisy_steps_come_near(plan: Path, tmp_path: Path) -> None:
    """A loss by example that DP-SGD, or a stack of nodes, cannot take."""
    one = simulate(plan, tmp_path / "one")
    steps = simulate(plan, tmp_path / "steps", **STEPS)
    assert read(steps, "concordance") > read(one, "concordance") - 0.03
    private = {"privacy": {"mode": "sample", "target_epsilon": 8}}
    noisy = simulate(plan, tmp_path / "noisy", **STEPS, **private)
    assert noisy.result.privacy["x"].epsilon <= 8
    assert read(noisy, "concordance") > 0.65


@pytest.mark.parametrize("release", ["sums", "products"])
def test_one_round_under_privacy(plan: Path, tmp_path: Path, release: str) -> None:
    """A head that is mostly noise, or hazards of other people."""
    private = {
        "privacy": {"mode": "sample", "target_epsilon": 3},
        "train.closed_form.release": release,
        "task.ranges": STEPS["task.ranges"],
    }
    run = simulate(plan, tmp_path / "run", **private)
    assert run.result.privacy["x"].epsilon <= 3
    assert read(run, "concordance") > 0.62


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ("0.1,0.2,-1,1", "'-1' is no time"),
        ("0.1,0.2,,1", "is no time"),
        ("0.1,0.2,soon,1", "'soon' is no time"),
        ("0.1,0.2,3,2", "does not say whether the event happened"),
        ("0.1,0.2,3,", "does not say whether the event happened"),
    ],
)
def test_people_that_cannot_be(plan: Path, tmp_path: Path, cells: str, words: str) -> None:
    """A person who was watched for minus one day, in everybody's curve."""
    with plan.with_name("x.csv").open("a") as file:
        file.write(cells + "\n")
    with pytest.raises(UserError, match=words) as error:
        simulate(plan, tmp_path / "run")
    assert "x.csv:402" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["task.survival={cuts: [5, 2]}"], "do not rise"),
        (["task.survival={cuts: [0, 2]}"], "greater than 0"),
        (["task.survival=null"], "missing"),
        (["task.targets=[days]"], "2"),
        (["task.targets=[]"], "in 2 columns"),
        (["task.classes=[a, b]"], "no class"),
        (["train.operating_point=youden"], "have none"),
        (["train.class_weights=[1, 2]", "train.method=steps", "backbone.name=mlp"], "one class"),
        (["train.loss=focal"], "no loss"),
        (["evaluate.metrics=[accuracy]"], "cannot be measured"),
        (["privacy={mode: sample, target_epsilon: 1}"], "no histogram tells"),
        (
            ["privacy={mode: sample, target_epsilon: 1}", "train.closed_form.shares=equal"],
            "no classes that could be so",
        ),
    ],
)
def test_plans_that_cannot_be(plan: Path, changes: list[str], words: str) -> None:
    """A plan that ends in a traceback at every hospital."""
    with pytest.raises(UserError, match=words):
        load_plan(plan, changes)
