"""A threshold that is chosen by validation records, and travels with the shared model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedgraft
from fedgraft.common.errors import UserError
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.run import Run
from fedgraft.simulations.predict import predict

PLAN = """
name: rare
task: {kind: tabular-classification, classes: [stays, returns], columns: [a, b]}
backbone: {name: columns}
adapter: {method: head}
train: {method: closed-form, operating_point: {sensitivity: 0.8}}
evaluate: {validation_fraction: 0.3}
simulation: {nodes: 3, data: table.csv, partition: {kind: iid}, test_fraction: 0.3}
seed: 2
"""


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


def simulate(plan: Path, out: Path, **changes: Any) -> Run:
    run = fedgraft.simulate(plan, set=changes, out=out, progress=False)
    assert isinstance(run, Run)
    return run


def sensitivity(confusion: dict[str, list[list[int]]]) -> float:
    counts = np.sum([np.array(table) for table in confusion.values()], axis=0)
    return counts[1, 1] / counts[1].sum()


def test_the_point_holds_on_tests_and_in_predictions(plan: Path, tmp_path: Path) -> None:
    """A threshold that is told and not used, or used in the table and not by who predicts."""
    even = simulate(plan, tmp_path / "even", **{"train.operating_point": "even"})
    run = simulate(plan, tmp_path / "run")
    point = run.result.operating_point
    assert point is not None
    assert sensitivity(even.result.confusion) < 0.4
    assert point.sensitivity >= 0.8
    assert point.threshold < 0.3
    assert abs(sensitivity(run.result.confusion) - 0.8) < 0.12
    # the same model, with another answer
    assert run.metrics.loc["shared model", "auroc"] == even.metrics.loc["shared model", "auroc"]
    assert run.metrics.loc["shared model", "loss"] == even.metrics.loc["shared model", "loss"]

    predict(tmp_path / "run", plan.with_name("table.csv"), tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert (row["class"] == "returns") == (float(row["p_returns"]) >= point.threshold - 1e-6)
    assert sum(row["class"] == "returns" for row in rows) > 300
    frame = run.shared_model.predict(plan.with_name("table.csv"))
    assert frame["class"].tolist() == [row["class"] for row in rows]
    card = (tmp_path / "run/shared_model/MODEL_CARD.md").read_text()
    page = (tmp_path / "run/report.html").read_text()
    for text in (card, page):
        assert f"answered from a probability of {point.threshold:.3f} on" in text


def test_with_a_temperature_the_point_is_that_of_the_divided_outputs(
    plan: Path, tmp_path: Path
) -> None:
    """A threshold on probabilities that nobody will see."""
    changes = {
        "backbone": {"name": "mlp", "hidden": [8]},
        "adapter": {"method": "lora", "rank": 2},
        "train": {
            "rounds": 4,
            "start": "standardise",
            "optimizer": {"lr": 0.05},
            "calibrate": "temperature",
            "operating_point": "youden",
        },
    }
    run = simulate(plan, tmp_path / "run", **changes)
    shared = load_shared_model(tmp_path / "run")
    assert run.result.operating_point is not None
    assert shared.threshold == run.result.operating_point.threshold
    counts = np.sum([np.array(table) for table in run.result.confusion.values()], axis=0)
    # balanced at least on tests, where even odds answer one class alone
    assert counts[1, 1] / counts[1].sum() > 0.4
    assert counts[0, 0] / counts[0].sum() > 0.4


def test_test_records_have_no_say(plan: Path, tmp_path: Path) -> None:
    """A point that was chosen on tests flatters itself."""
    run = simulate(plan, tmp_path / "run")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    tests = [json.loads(line) for line in lines if "final" in json.loads(line)]
    point = run.result.operating_point
    assert point is not None
    assert point.examples == pytest.approx(3000 * 0.7 * 0.3, abs=15)
    assert point.positives == pytest.approx(63, abs=25)
    assert sum(line["final"]["examples"] for line in tests) == pytest.approx(900, abs=5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["privacy={mode: sample, target_epsilon: 1}"], "counts"),
        (["task.classes=[a, b, c]"], "name two classes"),
        (["train.operating_point={sensitivity: 0.9, specificity: 0.9}"], "one of sensitivity"),
        (["train.operating_point={sensitivity: 1.5}"], "less than 1"),
        (["train.operating_point=best"], "operating_point"),
    ],
)
def test_points_that_cannot_be(plan: Path, changes: list[str], words: str) -> None:
    """A threshold that nothing covers, or that means nothing."""
    with pytest.raises(UserError, match=words):
        load_plan(plan, changes)


def test_without_validation_records_it_is_said_before_anything_runs(
    plan: Path, tmp_path: Path
) -> None:
    """A run that ends at its end for want of what could be seen at its start."""
    with pytest.raises(UserError, match="the data has none"):
        simulate(plan, tmp_path / "run", **{"evaluate.validation_fraction": 0})


def test_a_spoilt_threshold_is_refused(plan: Path, tmp_path: Path) -> None:
    """A model that answers anything."""
    simulate(plan, tmp_path / "run")
    file = tmp_path / "run/shared_model/model.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"threshold": 7.0}))
    with pytest.raises(UserError, match="no shared model that can be read"):
        load_shared_model(tmp_path / "run")
    file.write_text(json.dumps(about | {"threshold": 0.25}))
    shared = load_shared_model(tmp_path / "run")
    assert shared.answers(torch.tensor([[0.8, 0.2], [0.7, 0.3]])) == list(shared.classes)
