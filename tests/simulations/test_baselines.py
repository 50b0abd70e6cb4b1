"""What the shared model is measured against, against the same thing done another way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score

from fedgraft.client.node.node_file import load_node
from fedgraft.client.node_task import open_splits, open_validation
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import concatenate
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.common.plan.plan_file import amended, load_plan, plan_yaml
from fedgraft.simulations import baselines
from fedgraft.simulations.baselines import (
    BASELINES,
    VARIANTS,
    Pool,
    default_baselines,
    list_changes,
    measure_alone,
    measure_pooled,
)
from fedgraft.simulations.simulate import SeedJob, SimulationOptions, plan_baselines
from tests.common.plan.test_agreement import (
    IMAGES,
    PRIVATE,
    TABLES,
    changes_of,
    lines,
    plan_of,
)

# Trained so far that scores are spread: AUROC counts those within 0.015 of log-odds as equal.
FURTHER = ("aggregate.min_nodes=1", "train.rounds=10", "train.optimizer.lr=0.05")


def test_a_node_alone_is_a_federation_of_one_tested_on_everybody(tiny, tmp_path):
    """A node that is tested on another's test data: each alone here trains in a federation of its
    own, and scikit-learn measures its shared model on the test data of all three.
    """
    federation = tiny(3)
    plan = federation.plan(*FURTHER)
    backbone = plan_backbone(plan, tmp_path)
    found = measure_alone(plan, backbone, federation.nodes)
    tests = [
        open_splits(load_node(path), plan, backbone.preprocess)[1] for path in federation.nodes
    ]
    inputs = concatenate([test.inputs(torch.arange(len(test))) for test in tests])
    labels = torch.cat([test.labels for test in tests]).numpy()
    everybody = federation.nodes
    for number, path in enumerate(everybody):
        federation.nodes = [path]
        federation.run(tmp_path / f"alone-{number}", FURTHER)
        shared = load_shared_model(tmp_path / f"alone-{number}" / "shared_model")
        with torch.inference_mode():
            scores = shared.model(inputs).softmax(1).numpy()
        said = found["nodes"][f"h{number}"]
        assert said["examples"] == len(labels)
        assert said["accuracy"] == pytest.approx(accuracy_score(labels, scores.argmax(1)))
        assert said["auroc"] == pytest.approx(
            roc_auc_score(labels, scores[:, 1]), abs=0.01
        )  # a histogram's
    assert found["accuracy"] == pytest.approx(
        np.mean([row["accuracy"] for row in found["nodes"].values()])
    )
    assert found["best"]["accuracy"] == max(row["accuracy"] for row in found["nodes"].values())


def test_the_best_alone_is_chosen_by_validation_records(tiny, tmp_path, monkeypatch):
    """The node that is luckiest on the tests called the best: every other one is then worse by
    choice.
    """
    federation = tiny(3)
    plan = federation.plan("evaluate.validation_fraction=0.3")
    backbone = plan_backbone(plan, tmp_path)
    asked = []
    measure_on = baselines._measure_on

    def look(task, state, examples):
        metrics = measure_on(task, state, examples)
        asked.append((task.node, sum(map(len, examples)), metrics["accuracy"]))
        return metrics

    monkeypatch.setattr(baselines, "_measure_on", look)
    found = measure_alone(plan, backbone, federation.nodes)
    splits = [
        open_splits(load_node(path), plan, backbone.preprocess)[0] for path in federation.nodes
    ]
    records = sum(len(open_validation(train)) for train in splits)
    judged = {node: accuracy for node, count, accuracy in asked if count == records}
    assert len(judged) == 3
    best = found["best"]
    assert judged[best["node"]] == max(judged.values())
    assert best["chosen_on"] == "validation"
    assert best["accuracy"] == found["nodes"][best["node"]]["accuracy"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_plan_that_chooses_a_round_has_every_baseline(name):
    """A run that ends with an error after its training, since a baseline has no rounds to choose
    from.
    """
    chooses = ["train.keep=best", "train.patience=3", "train.choose_by=auroc"]
    plan = load_plan("pneumonia", chooses)
    assert amended(plan, VARIANTS[name]).adapter.method


@pytest.mark.parametrize("line", lines(IMAGES + PRIVATE + TABLES))
def test_a_plan_with_any_key_has_its_usual_baseline(line: str) -> None:
    """A run that ends with an error after its training, since a key of steps stands in its way."""
    plan = amended(plan_of(line), changes_of(line))
    for name in default_baselines(plan):
        assert amended(plan, list_changes(name, plan)).train.method == "closed-form"


def test_a_baseline_that_does_not_go_with_the_plan_is_named(tiny, tmp_path) -> None:
    """A refusal of `--set`, which nobody typed; or after the training; or `all` that is refused
    for one of them.
    """
    federation = tiny(3)
    plan = federation.plan("adapter.method=head", "train.method=closed-form", "train.rounds=1")
    file = tmp_path / "plan.yaml"
    file.write_text(plan_yaml(plan))
    job = SeedJob(file, file, (), tmp_path / "run", SimulationOptions(baselines=("full",)))
    with pytest.raises(UserError, match="--baselines: full does not go with this plan"):
        plan_baselines(job, plan)
    every = replace(job, options=SimulationOptions(baselines=BASELINES))
    names, variants = plan_baselines(every, plan)
    assert "full" not in names
    assert {"alone", "pooled", "random-backbone"} <= set(names)
    assert "random-backbone" in variants


def test_pooled_data_are_all_data(tiny, tmp_path):
    """A pool that forgets a node, or reads one node's rows as another's."""
    federation = tiny(3)
    plan = federation.plan()
    backbone = plan_backbone(plan, tmp_path)
    splits = [open_splits(load_node(path), plan, backbone.preprocess) for path in federation.nodes]
    found = measure_pooled(plan, backbone, federation.nodes)
    assert found["examples"] == sum(len(test) for _, test in splits)
    assert {name: row["examples"] for name, row in found["nodes"].items()} == {
        f"h{number}": len(test) for number, (_, test) in enumerate(splits)
    }
    pool = Pool([train for train, _ in splits])
    whole = concatenate([train.inputs(torch.arange(len(train))) for train, _ in splits]).only
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    assert torch.equal(pool.inputs(order).only.nan_to_num(), whole[order].nan_to_num())


def test_steps_that_finish_in_a_closed_form_do_so_alone(tiny, tmp_path):
    """A baseline whose steps train another head than the federation's: a node alone with these
    phases is a federation of one.
    """
    federation = tiny(2)
    federation.nodes = federation.nodes[:1]
    finish = ("train.start=closed-form", "train.finish=closed-form", "train.rounds=4")
    keys = ("aggregate.min_nodes=1", "adapter={method: lora, rank: 2}", *finish)
    plan = federation.plan(*keys)
    found = measure_alone(plan, plan_backbone(plan, tmp_path), federation.nodes)
    result, _ = federation.run(tmp_path / "run", keys)
    shared = result["final"]["global"]
    assert found["nodes"]["h0"]["loss"] == pytest.approx(shared["loss"], abs=1e-6)
