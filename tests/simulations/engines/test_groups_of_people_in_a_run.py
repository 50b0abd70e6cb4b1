"""Groups of people over real hospitals: what the result says is what the pooled predictions say."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import MetricRecord, RecordDict
from sklearn.metrics import accuracy_score, roc_auc_score

from fedgraft.client.data.groups_of_people import find_groups
from fedgraft.client.data.split import Split
from fedgraft.client.node.node_file import load_node
from fedgraft.client.node_task import open_splits
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.classification_sums import sums_of
from fedgraft.common.wire.layout import BadUpdate
from fedgraft.common.wire.metric_records import Groups, group_records, read_groups
from fedgraft.simulations.engines.engine import nodes_on_disk, simulate
from fedgraft.simulations.simulated_nodes import NO_CLAUSES
from fedgraft.simulations.write_report import write_report

DATA = Path(
    os.environ.get("FEDGRAFT_DATA", Path(__file__).resolve().parents[4] / "shared" / "data")
)
FILES = [
    DATA / "heart_disease" / f"{name}.csv"
    for name in ("cleveland", "hungarian", "switzerland", "va")
]
HEART = (
    "pretrain=null",
    "backbone.weights=null",
    "train.rounds=2",
    f"simulation.data=[{', '.join(map(str, FILES))}]",
    "simulation.test_fraction=0.4",
)


def ran(
    folder: Path, *overrides: str, policy: Mapping[str, Any] = NO_CLAUSES
) -> tuple[Plan, dict[str, Any], list[Split]]:
    """The heart plan's federation of four hospitals, from a random network; their test splits."""
    if not FILES[0].is_file():
        pytest.skip(f"{FILES[0]} is not there")
    plan = load_plan("heart", [*HEART, *overrides])
    with nodes_on_disk(plan, folder / "plan.yaml", policy=policy) as nodes:
        result = simulate(plan, folder / "plan.yaml", folder / "run", nodes=nodes).to_json()
        splits = [open_splits(load_node(path), plan, Preprocess())[1] for path in nodes]
    return plan, result, splits


def test_groups_are_those_of_the_pooled_predictions(tmp_path: Path) -> None:
    """Sums merged under another column or group, rows mixed up, a hospital's too small group told
    of.

    By scikit-learn, over the predictions of the shared model from its folder; rows are those of the
    hospitals where the group has ten test records or more and is told of.
    """
    plan, result, splits = ran(tmp_path)
    model = load_shared_model(tmp_path / "run")
    told = result["final"]["subgroups"]
    assert list(told) == ["sex", "age"]
    kept_back = 0
    for column in plan.evaluate.subgroups:
        for group, name in enumerate(column.groups):
            truth, scores, sites = [], [], 0
            for split in splits:
                of = find_groups(column, split.records, split.rows)
                assert of is not None
                counts = np.bincount(of[of >= 0], minlength=len(column.groups))
                rest = len(of) - counts[counts >= 10].sum()
                smallest = min(counts[counts >= 10], default=0)
                if counts[group] < 10 or (0 < rest < 10 and counts[group] == smallest):
                    kept_back += counts[group] > 0
                    continue
                mine = of == group
                inputs = split.records.read(split.rows[mine])
                scores.append(model.predict(inputs)[:, 1].numpy())
                truth.append(split.labels.numpy()[mine])
                sites += 1
            found = told[column.column].get(name)
            if not sites:
                assert found is None
                continue
            y, p = np.concatenate(truth), np.concatenate(scores)
            assert (found["examples"], found["nodes"]) == (len(y), sites)
            assert found["accuracy"] == pytest.approx(accuracy_score(y, p > 0.5), abs=1e-9)
            assert found["auroc"] == pytest.approx(
                roc_auc_score(y, p), abs=0.005
            )  # from histograms of 1,024 bins
    assert kept_back >= 2  # the few women of Zurich and Long Beach, and with them the men there
    assert told["sex"]["women"]["nodes"] == told["sex"]["men"]["nodes"] == 2
    page = write_report(tmp_path / "run").read_text()
    assert "sex: women" in page
    assert "2 of 4" in page
    assert "Worst by sex: " in page
    card = (tmp_path / "run" / "shared_model" / "MODEL_CARD.md").read_text()
    assert f"| sex: women | {told['sex']['women']['examples']} |" in card


@pytest.mark.parametrize(
    ("overrides", "policy"),
    [
        pytest.param(
            ("privacy={mode: sample, target_epsilon: 8, delta: 1.0e-3, accountant: rdp}",),
            {"report_metrics": True},
            marks=pytest.mark.slow,  # it imports Opacus
        ),
        (
            ("privacy={mode: central, noise_multiplier: 1.0, delta: 1.0e-3}",),
            {"report_metrics": True},
        ),
        (("evaluate.subgroups=[{column: ethnicity, values: [a, b]}]",), {}),
        ((), {"min_subgroup": None}),
    ],
)
def test_where_they_may_not_be_told_or_are_not_known_nothing_is(
    tmp_path: Path, overrides, policy
) -> None:
    """Sums that ε does not count; or a hospital kept out for a column that it never recorded."""
    _, result, _ = ran(tmp_path, "train.rounds=1", *overrides, policy=policy)
    assert not any(result["final"]["subgroups"].values())
    assert len(result["final"]["nodes"]) == 4
    page = write_report(tmp_path / "run").read_text()
    assert "Not known" in page or "No site told of" in page


# ── what comes over the wire ──────────────────────────────────────────────────────────────────────
TASK = TaskSection(kind="tabular-classification", classes=("no", "yes"), columns=("a",))
WHOLE = sums_of(
    torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0], [0.0, 3.0]]), torch.tensor([0, 1, 1, 1])
)
SOME = sums_of(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
HUGE = sums_of(torch.zeros((1000, 2)), torch.zeros(1000, dtype=torch.int64))
LIE = sums_of(torch.tensor([[0.0, 2.0]]), torch.tensor([0]))


def record(groups: dict, **more: Any) -> RecordDict:
    return RecordDict({"received": MetricRecord(WHOLE.to_flat()), **group_records(groups), **more})


def test_groups_arrive_as_they_were_sent() -> None:
    found = read_groups(record({(0, 1): SOME}), [2, 3], WHOLE, TASK)
    assert list(found) == [(0, 1)]
    assert found[0, 1].to_flat() == SOME.to_flat()


@pytest.mark.parametrize(
    ("make", "sizes", "what"),
    [
        (
            lambda: record({(0, 2): SOME}),
            [2],
            "unexpected records",
        ),  # a group that the plan does not have
        (lambda: record({(0, 0): SOME}), [], "unexpected records"),  # and none was asked for
        (lambda: record({(0, 0): SOME, (0, 1): WHOLE}), [2], "more than all"),
        (lambda: record({(0, 0): LIE}), [1], "more than all"),  # a mistake that nobody made
        (
            lambda: record({}, **{"subgroup.0.0": MetricRecord({"examples": 10**9})}),
            [1],
            "keys missing",
        ),
        (lambda: record({}, diary=MetricRecord({"x": 1})), [1], "unexpected records"),
    ],
)
def test_what_no_node_could_have_measured_is_refused(
    make: Callable[[], RecordDict], sizes, what
) -> None:
    with pytest.raises(BadUpdate, match=what):
        read_groups(make(), sizes, WHOLE, TASK)


def test_a_node_that_lies_about_groups_is_left_out_and_named(tmp_path: Path, monkeypatch) -> None:
    """One hospital's invented group that stops the others, or enters the result."""
    asked: list[int] = []

    def lie_once(groups: Groups) -> dict[str, MetricRecord]:
        asked.append(len(groups))
        return group_records({(0, 0): HUGE} if len(asked) == 1 else groups)

    monkeypatch.setattr("fedgraft.client.handlers.group_records", lie_once)
    _, result, _ = ran(tmp_path, "train.rounds=1")
    (left_out,) = result["refused"]
    assert "more than all" in left_out["reason"]
    assert len(asked) == 4
    assert set(result["final"]["nodes"]) == set(result["nodes"]) - {left_out["node"]}
    assert result["final"]["subgroups"]["age"]["below 55"]["examples"] < 200
