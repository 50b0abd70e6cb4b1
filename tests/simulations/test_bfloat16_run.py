"""A plan in bfloat16 from the run to the prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fedgraft
from fedgraft.client.node.approval_words import in_words
from fedgraft.client.node.approve import propose
from fedgraft.client.node.node_file import load_node
from fedgraft.common.errors import UserError
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.common.plan.plan_file import load_plan

PLAN = {
    "name": "rounded",
    "task": {
        "kind": "image-classification",
        "classes": ["five", "six", "seven"],
        "labels": [5, 6, 7],
    },
    "backbone": {"name": "cifar-resnet8", "image_size": 16, "precision": "bfloat16"},
    "adapter": {"method": "lora", "targets": "last-block", "rank": 2},
    "train": {"rounds": 2, "local_epochs": 1, "batch_size": 24, "optimizer": {"lr": 1e-2}},
    "simulation": {"nodes": 2, "data": "sklearn:digits", "partition": {"kind": "iid"}},
}
SUMS = {
    "train.method": "closed-form",
    "train.rounds": 1,
    "adapter.method": "head",
    "adapter.targets": "auto",
}


def run(out: Path, **changes: object) -> fedgraft.Run:
    options = {"out": out, "baselines": [], "progress": False}
    return fedgraft.simulate(PLAN, set=changes, **options)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("changes", [{}, SUMS], ids=["steps", "sums"])
def test_a_shared_model_predicts_as_it_was_measured(
    changes: dict[str, object], tmp_path: Path
) -> None:
    """A model that was trained on rounded features, and is opened in float32."""
    run(tmp_path / "run", **changes)
    run(tmp_path / "again", **changes)
    run(tmp_path / "exact", **changes, **{"backbone.precision": "float32"})
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["precision"] == "bfloat16"
    card = (tmp_path / "run" / "shared_model" / "MODEL_CARD.md").read_text()
    assert "the frozen part in bfloat16" in card
    shared = load_shared_model(tmp_path / "run")
    assert shared.model.front is not None
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 17, (4, 1, 8, 8), np.uint8))
    told = shared.predict(images)
    assert torch.equal(told, load_shared_model(tmp_path / "again").predict(images))
    other = load_shared_model(tmp_path / "exact").predict(images)
    assert not torch.equal(told, other)
    torch.testing.assert_close(told, other, atol=0.1, rtol=0)


def test_a_plan_with_nothing_frozen_in_front_is_told_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match="nothing worth it is frozen"):
        run(tmp_path / "run", **{"adapter.targets": "auto"})
    assert not (tmp_path / "run").exists()


def test_a_hospital_reads_it_in_what_it_approves(tmp_path: Path) -> None:
    """Features of another precision, approved by somebody who was not told."""
    file = tmp_path / "node.yaml"
    file.write_text("name: hospital\ndata: {path: data.npz}\nstore: store\n")
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps(PLAN))
    node = load_node(file)
    words = in_words(node, propose(node, load_plan(plan), base=tmp_path))
    assert "which is not changed and computed in bfloat16" in words
