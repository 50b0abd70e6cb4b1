"""A hospital's node that is killed while it is sent a backbone goes on at the part where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgraft.client.node.node_file import load_node
from fedgraft.client.store.backbone_download import Download
from fedgraft.client.store.backbone_store import UNFINISHED
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.server.send_parts import PART
from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.deployment.processes import wait_until
from fedgraft.simulations.simulated_nodes import write_nodes
from tests.e2e.conftest import write_images

pytestmark = [pytest.mark.slow, pytest.mark.deployment]
# 94 MB: three parts
PLAN = """
name: large
task: {kind: image-classification, classes: [dark, light]}
backbone: {name: resnet50, image_size: 32}
adapter: {method: head}
train: {rounds: 1, batch_size: 16}
aggregate: {min_nodes: 2}
simulation: {nodes: 2, data: spots.npz, partition: {kind: iid}}
"""
# bytes of all messages that are no part
BESIDE = 200_000


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[LocalFederation]:
    (tmp_path / "plan.yaml").write_text(PLAN)
    write_images(tmp_path / "spots.npz")
    plan = load_plan(tmp_path / "plan.yaml")
    files = write_nodes(plan, tmp_path / "plan.yaml", tmp_path / "nodes")
    nodes: dict[str, Path] = dict(zip(("north", "south"), files, strict=True))
    with LocalFederation(tmp_path, nodes, tmp_path / "plan.yaml") as running:
        # a disk for each, as hospitals have
        for file in running.files.values():
            store = load_node(file).store / "backbones"
            if store.is_symlink():
                store.unlink()
        yield running


def find_missing(federation: LocalFederation, node: str) -> list[int]:
    """Return the parts that a node lacks still, by what lies in its store; none before any came."""
    for folder in (load_node(federation.files[node]).store / "backbones").glob(f"*{UNFINISHED}"):
        return Download(folder).missing()
    return []


def test_only_what_is_missing_is_sent(federation: LocalFederation):
    """A hospital behind a slow line that is sent hundreds of megabytes from the beginning."""
    out = federation.folder / "runs" / "broken"
    running = federation.begin_run(federation.folder / "plan.yaml", out)
    parts = 3

    def has_begun() -> bool:
        return 0 < len(find_missing(federation, "south")) < parts

    try:
        wait_until("a part came and was kept", has_begun, 300)
        federation.kill_node("south")
        said, errors = running.communicate(timeout=240)
    finally:
        running.kill()
    assert running.returncode == 1, said + errors
    assert "1 of 2 nodes joined" in said + errors
    missing = find_missing(federation, "south")
    assert 0 < len(missing) < parts

    connections = federation.count_connections("south")
    federation.start_node("south")
    wait_until("it is back", lambda: federation.count_connections("south") > connections, 180)
    out = federation.folder / "runs" / "again"
    done = federation.run(federation.folder / "plan.yaml", out)
    assert done.code == 0, done
    result = json.loads((out / "result.json").read_text())
    handout = result["bytes"]["handout"]
    assert handout["nodes"] == 1, "the other has it"
    came = (parts - len(missing)) * PART
    assert abs(handout["down"] - (result["bytes"]["backbone"] - came)) < BESIDE
