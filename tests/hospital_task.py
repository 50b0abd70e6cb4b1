"""What a hospital works on under a plan, for tests of a round."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgraft.client.node.node_file import load_node
from fedgraft.client.node_task import NodeTask, open_splits, working_model
from fedgraft.common.files.whole_files import write_whole
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.plan.plan_file import load_plan


def task_of(here: Path, plan: Mapping[str, Any], data: str, *overrides: str) -> NodeTask:
    """Return a hospital's task under a plan; its data lie in the folder `here`."""
    node_file = f"name: n\ndata: {{path: {data}}}\nstore: store\n"
    write_whole(here / "node.yaml", node_file.encode())
    write_whole(here / "plan.json", json.dumps(plan).encode())
    node = load_node(here / "node.yaml")
    loaded = load_plan(here / "plan.json", overrides)
    backbone = plan_backbone(loaded, here)
    train, test = open_splits(node, loaded, backbone.preprocess)
    model = working_model(backbone, loaded)
    return NodeTask("n", loaded, model, train, test, model.frozen_fingerprint())
