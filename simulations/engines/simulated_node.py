"""What a simulation's node has that no hospital's has: noise that can be repeated, and files that
an earlier release wrote.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from flwr.app import Context

from fedgraft.client.data.split import Split
from fedgraft.client.desk import Desk, find_node
from fedgraft.client.node.node_file import Node, check_node_file
from fedgraft.client.privacy.budget import Budget
from fedgraft.common.files.yaml_file import read_yaml
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.privacy.randomness import Randomness


def simulation_desk(**options: Any) -> Desk:
    """Return a desk whose nodes add noise that can be repeated. It protects nobody.

    Args:
        options: of `Desk`.
    """
    return Desk(open_node=load_simulated_node, open_budget=open_seeded_budget, **options)


def find_by_partition(context: Context) -> Path:
    """Return where a node's own file is; Flower's Simulation Runtime names a node by its number."""
    if "partition-id" not in context.node_config:
        return find_node(context)
    folder = Path(str(context.run_config["nodes"]))
    return folder / f"node-{context.node_config['partition-id']}.yaml"


def open_seeded_budget(node: Node, plan: Agreement, train: Split) -> Budget:
    """Return a node's budget with noise from the plan's seed."""
    return Budget.open(node, plan, train, randomness=seeded_randomness)


def seeded_randomness(plan: Agreement, round_: int, node: str, purpose: str) -> Randomness:
    """Return the noise of one node's round: the same in every repetition."""
    text = f"{plan.seed}/{round_}/{node}/{purpose}"
    return Randomness(hashlib.sha256(text.encode()).digest())


def load_simulated_node(path: Path) -> Node:
    """Return a simulation's node, also from a file that an earlier release wrote.

    Raises:
        UserErrors: every mistake in the file at once.
    """
    content, lines = read_yaml(path)
    policy = content.get("policy")
    if isinstance(policy, dict):
        # an earlier release wrote there what is the engine's to decide
        policy.pop("seeded_noise", None)
    return check_node_file(content, lines, path)
