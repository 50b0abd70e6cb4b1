"""One round of a deployment beside one of a Flower app that does nothing, and where each second of
ours goes.

    .venv/bin/python -m fedgraft.simulations.benchmarks.deployment_round

Real processes on loopback, two nodes, TLS, node keys and the gateway. Ours runs on nodes started by
`fedgraft node start`; the apps that do nothing run on Flower's own SuperNodes as they are, under
the same keys, on the same SuperLink. The mean over all rounds is shown; the breakdown is that of
`round_parts.py`.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fedgraft.client.node.node_file import load_node
from fedgraft.common import run_files
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan_file import find_plan, load_plan, plan_yaml
from fedgraft.server.site.flower_processes import COMPLETED, Flower, RunConfig, program
from fedgraft.server.site.start_server import connect
from fedgraft.simulations.benchmarks.project import write_project
from fedgraft.simulations.benchmarks.result_files import ResultTable, record
from fedgraft.simulations.benchmarks.round_parts import Parts, average_parts, list_parts
from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.deployment.processes import find_free_ports, wait_until
from fedgraft.simulations.simulated_nodes import write_nodes

NODES = 2
ROUNDS = 5
SETTINGS = (
    f"simulation.nodes={NODES}",
    # a round ends with its slowest node: here they have as much to do
    "simulation.partition={kind: iid}",
    f"train.rounds={ROUNDS}",
    # its training is short: what is left is the deployment's own
    "adapter.method=head",
    "evaluate.every=100",
)
DEFAULTS = {"nodes": 0, "rounds": 0, "torch": False, "result": ""}
PACKAGES = ("flwr", "torch")


def main() -> None:
    """Print both tables in Markdown and record them."""
    with tempfile.TemporaryDirectory(prefix="fedgraft-round-") as folder:
        means, parts = measure(Path(folder))
    apps = show_apps(means)
    print(apps.to_markdown())
    seconds = ResultTable(("in one round of ours", "seconds"))
    for what, part in parts.items():
        seconds.add(what, f"{part:.2f}")
    print(f"\n{seconds.to_markdown()}")
    record("deployment", "round", apps, packages=PACKAGES)
    record("deployment", "parts", seconds, packages=PACKAGES)


def show_apps(means: Mapping[str, float]) -> ResultTable:
    """Return the table of apps from the mean seconds of a round; the first does nothing."""
    table = ResultTable(("app", "seconds a round", "÷ nothing"))
    nothing = next(iter(means.values()))
    for app, mean in means.items():
        table.add(app, f"{mean:.2f}", f"{mean / nothing:.2f}")
    return table


def measure(folder: Path) -> tuple[dict[str, float], Parts]:
    """Return the mean seconds of a round of each app, and the parts of one of ours."""
    plan = load_plan("pneumonia", SETTINGS)
    plan_path = find_plan("pneumonia")
    plan_file = folder / "plan.yaml"
    plan_file.write_text(plan_yaml(plan))
    nodes = {}
    for number, file in enumerate(write_nodes(plan, plan_path, folder / "nodes")):
        nodes[f"node-{number}"] = file
    weights = str(resolve(str(plan.backbone.weights), plan_path.parent))
    with LocalFederation(folder, nodes, plan_file) as federation:
        ours, parts = run_ours(federation, weights)
        start_plain_supernodes(federation)
        nothing = run_nothing(federation, torch=False)
        with_torch = run_nothing(federation, torch=True)
    means = {
        "does nothing, on Flower as it is": nothing,
        "imports torch, does nothing": with_torch,
        "fedgraft, `pneumonia`, the head alone": ours,
    }
    return means, parts


# ── ours ──────────────────────────────────────────────────────────────────────────────────────────
def run_ours(federation: LocalFederation, weights: str) -> tuple[float, Parts]:
    """Return the mean seconds of a round of ours, and the parts that they are made of."""
    out = federation.folder / "out"
    ends: dict[int, float] = {}

    def note_ends() -> None:
        for checkpoint in run_files.checkpoints_of(out):
            ends[run_files.round_of(checkpoint)] = checkpoint.stat().st_mtime

    flower = connect(federation.server)
    config = {
        "plan": str(federation.folder / "plan.yaml"),
        "weights": weights,
        "out": str(out),
        "nodes-expected": NODES,
    }
    run(flower, flower.make_app(), config, note_ends)
    parts = []
    for node in federation.files:
        parts += list_parts(federation, node, out, ends)
    seconds = json.loads((out / run_files.RESULT).read_text())["seconds"]
    return seconds["rounds"] / ROUNDS, average_parts(parts)


# ── nothing ───────────────────────────────────────────────────────────────────────────────────────
def start_plain_supernodes(federation: LocalFederation) -> None:
    """Stop every node, and start Flower's own SuperNode as it is in its place."""
    for node in federation.files:
        federation.stop(node)
        federation.start_node(node, supernode_command(federation, node))
    for node in federation.files:
        wait_until(f"{node} is connected", lambda node=node: "SuperNode ID" in federation.log(node))


def supernode_command(federation: LocalFederation, node: str) -> list[str]:
    """Return what starts Flower's own SuperNode with this node's key."""
    home = federation.folder / "homes" / node
    home.mkdir(parents=True)
    connection = load_node(federation.files[node]).connection
    assert connection is not None
    (port,) = find_free_ports(1)
    command = ["env", f"FLWR_HOME={home}", program("flower-supernode")]
    command += ["--superlink", connection.superlink]
    command += ["--root-certificates", connection.root_certificates]
    command += ["--auth-supernode-private-key", connection.private_key]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    return command


def run_nothing(federation: LocalFederation, *, torch: bool) -> float:
    """Return the mean seconds of a round of the app that does nothing."""
    app = federation.folder / "nothing"
    seconds = federation.folder / f"{torch}.json"
    write_project(app, "nothing", "nothing_app", DEFAULTS)
    config = {"nodes": NODES, "rounds": ROUNDS, "torch": torch, "result": str(seconds)}
    run(connect(federation.server), app, config)
    return statistics.mean(json.loads(seconds.read_text()))


def run(
    flower: Flower, app: Path, config: RunConfig, look: Callable[[], None] = lambda: None
) -> None:
    """Run an app to its end, with a look at something twice a second."""
    run_id = flower.submit(app, config)
    while not (status := flower.status(run_id)).startswith("finished"):
        # a question takes time from what is measured
        for _ in range(10):
            time.sleep(0.5)
            look()
    if status != COMPLETED:
        sys.exit(f"Flower ended the run as {status}\n{flower.log(run_id)}")


if __name__ == "__main__":
    main()
