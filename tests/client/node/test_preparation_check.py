"""A hostile server that has records prepared in another way than was approved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from fedgraft.client.app import app
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.material import hash_preparation
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.plan.plan import Plan, agreement_of
from fedgraft.common.plan.plan_file import agreement_hash, canonical
from fedgraft.server.exchange import exchange
from fedgraft.simulations.engines.inprocess import InProcessGrid

ANOTHER = {"mean": [0.0, 0.0, 0.0], "std": [0.001, 0.001, 0.001]}


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[InProcessGrid]:
    """One node with images."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (40, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) % 2)
    path = tmp_path / "node.yaml"
    path.write_text("name: north\ndata: {path: data.npz}\nstore: store\npolicy: {}\n")
    made = InProcessGrid(app, [path], workers=1)
    yield made
    made.close()


def network() -> Backbone:
    """Return what the plan names."""
    return load_backbone("cifar-resnet8", image_size=16)


def plan_of(preparation: str | None = None) -> Plan:
    """Return a plan that names a preparation, or none."""
    content: dict[str, Any] = {
        "name": "tiny",
        "task": {"kind": "image-classification", "classes": ["no", "yes"]},
        "backbone": {"name": "cifar-resnet8", "image_size": 16, "preparation": preparation},
        "adapter": {"method": "head"},
    }
    return Plan.model_validate(content)


def offer(grid: InProcessGrid, plan: Plan, **changed: Any) -> str:
    """Return why a node refuses an offer; "" where it takes it."""
    net = network()
    offered: dict[str, Any] = {
        "plan": canonical(agreement_of(plan)),
        "plan-hash": agreement_hash(plan),
        "fingerprint": net.fingerprint,
        "preprocess": json.dumps(net.preprocess.to_json() | changed),
    }
    content = RecordDict({"offer": ConfigRecord(offered)})
    replies = exchange(grid, "query.offer", content, {"north": 2}, group="1", timeout=60)
    return replies.refused.get("north", "")


def test_another_preparation_than_the_plans_is_refused(grid: InProcessGrid) -> None:
    """A server that scales records as it likes would have them clipped, or told apart, by what was
    never approved.
    """
    plan = plan_of(hash_preparation(network().preprocess))
    assert "backbone.preparation" in offer(grid, plan, **ANOTHER)
    assert "backbone.preparation" in offer(grid, plan, interpolation="bicubic")
    assert offer(grid, plan) == ""


def test_it_stays_what_it_was_at_first(grid: InProcessGrid) -> None:
    """A plan that names none could be sent again with another, after people have looked at it."""
    assert offer(grid, plan_of()) == ""
    assert "came first" in offer(grid, plan_of(), **ANOTHER)
    assert offer(grid, plan_of()) == ""


def test_what_is_no_preparation_is_refused_as_such(grid: InProcessGrid) -> None:
    """A deviation of 0 is a mistake of the server's, not one of the hospital's data."""
    assert "cannot have" in offer(grid, plan_of(), std=[0.0, 1.0, 1.0])


def test_the_coordinator_is_told_first(tmp_path: Path) -> None:
    """Weights that bring another preparation would be refused at every hospital."""
    plan = plan_of(f"sha256:{'0' * 64}")
    with pytest.raises(UserError, match="prepared as"):
        plan_backbone(plan, tmp_path)
    assert "preparation" not in canonical(agreement_of(plan_of()))
