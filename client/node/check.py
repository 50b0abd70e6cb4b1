"""`fedgraft node check`: everything that can go wrong before a node starts, told at once, with its
remedy.

    node file → data under the plan → this machine → the approved code → the way to the coordinator
    → the policy

Nothing is sent but an empty signed question whether the coordinator knows this node's key, nothing
is spent of the privacy budget, and no file is written.
"""

from __future__ import annotations

from fedgraft.client.node.code_findings import check_approved_code
from fedgraft.client.node.data_findings import check_data, check_data_exists
from fedgraft.client.node.finding import Finding, ok, skipped
from fedgraft.client.node.machine_findings import check_machine
from fedgraft.client.node.node_file import Node
from fedgraft.client.node.policy_findings import check_policy
from fedgraft.client.node.precision_findings import check_precision, check_quantization
from fedgraft.client.site.network import check_connection
from fedgraft.common.plan.plan import Plan


def check_node(node: Node, plan: Plan | None) -> list[Finding]:
    """Look at everything that this node needs, in the order of the file's docstring."""
    findings = [ok("node file", f"valid; this node is {node.name}")]
    splits = None
    if plan is None:
        findings.append(check_data_exists(node))
    else:
        splits, about_data = check_data(node, plan)
        findings += about_data

    findings += check_machine(node)
    if plan is not None:
        findings += check_precision(node, plan)
        findings += check_quantization(plan)
    if node.connection is None:
        findings.append(skipped("connection", "none in the node's file: a node of a simulation"))
    else:
        findings.append(check_approved_code(node))
        findings += check_connection(node.connection)

    if plan is None:
        findings.append(skipped("policy", "give --plan to hold a plan against it"))
    else:
        findings += check_policy(node, plan, splits)
    return findings
