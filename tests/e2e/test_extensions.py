"""Code of one's own over TLS: what the hospitals approved is what runs, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedgraft.client.privacy.ledger import Ledger
from fedgraft.client.privacy.statement import statement
from fedgraft.common import extensions
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.simulated_nodes import write_nodes

pytestmark = [pytest.mark.slow, pytest.mark.deployment]

EXAMPLES = Path(__file__).parents[2] / "examples"
# a random backbone is enough to see which code runs
CHANGES = (
    "backbone={name: own-network, image_size: 8}",
    "pretrain=null",
    "simulation.nodes=2",
    "train.rounds=1",
    "privacy={mode: sample, target_epsilon: 8, delta: 1.0e-5}",
)


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's extension, known to this process until the end of the test."""
    monkeypatch.setattr(extensions, "_offered", {})
    extensions.offer_extension(EXAMPLES / "own_network")
    return EXAMPLES / "own_network"


def test_a_network_of_ones_own_at_two_hospitals(tmp_path: Path, offered: Path, seen) -> None:
    """A node that runs code which nobody there approved, or that cannot run what was; a statement
    of ε that does not say whose code it rests on.
    """
    plan = tmp_path / "plan.yaml"
    shutil.copy(EXAMPLES / "own_network.yaml", plan)
    loaded = load_plan(plan, CHANGES)
    files = write_nodes(loaded, plan, tmp_path / "nodes")
    nodes: dict[str, Path] = {"north": files[0], "south": files[1]}
    with LocalFederation(tmp_path / "federation", nodes, plan, *CHANGES) as federation:
        words = ["server", "run", plan, "--server", federation.server_file]
        for change in CHANGES:
            words += ["--set", change]

        # code that the hospitals did not approve: one line more
        other = tmp_path / "other" / "own_network"
        shutil.copytree(offered, other, ignore=shutil.ignore_patterns("__pycache__"))
        (other / "__init__.py").write_text((other / "__init__.py").read_text() + "\n# more\n")
        refused = federation.fedgraft(*words, "--out", tmp_path / "r", "--with", other)
        assert refused.code == 1
        assert "is not approved at this node" in federation.log("north") + refused.err, refused

        out = tmp_path / "run"
        done = federation.fedgraft(*words, "--out", out, "--with", offered)
        assert done.code == 0, done
        assert "completed: 1 rounds, 2 nodes" in done.out
        ledger = Ledger(federation_ledger(federation))
        (data,) = statement(ledger)["data_sets"]
        assert data["trusted"] == [f"own_network {loaded.extensions[0].hash}"]
    seen("a network of one's own, approved at 2 hospitals: one private round; altered: refused")


def federation_ledger(federation: LocalFederation) -> Path:
    from fedgraft.client.node.node_file import load_node

    return load_node(federation.files["north"]).ledger_path
