"""One round of a deployment beside one of a Flower app that does nothing, and where each second of
ours goes.

    .venv/bin/python -m fedgraft.simulations.benchmarks.deployment_round

Real processes on loopback, two nodes, TLS, node keys and the gateway. Ours runs on nodes started by
`fedgraft node start`; the apps that do nothing run on Flower's own SuperNodes as they are, under
the same keys, on the same SuperLink. The mean over all rounds is shown.

The breakdown is put together from clocks that are one machine's here, and adds up to the round: the
node's log says when Flower's SuperNode had the message and when it had sent the answer, the audit
log when our code began and ended, and the run's checkpoints when the server had finished a round.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from fedgraft.client.node.node_file import load_node
from fedgraft.client.store.journal import Journal
from fedgraft.common import run_files
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan_file import find_plan, load_plan, plan_yaml
from fedgraft.server.site.flower_processes import COMPLETED, Flower, RunConfig, program
from fedgraft.server.site.start_server import connect
from fedgraft.simulations.benchmarks.project import write_project
from fedgraft.simulations.deployment.local_federation import Federation
from fedgraft.simulations.deployment.processes import free_ports, until
from fedgraft.simulations.simulated_nodes import write_nodes

NODES, ROUNDS = 2, 5
SETTINGS = (
    f"simulation.nodes={NODES}",
    # a round ends with its slowest node: here they have as much to do
    "simulation.partition={kind: iid}",
    f"train.rounds={ROUNDS}",
    "adapter.method=head",  # its training is short: what is left is the deployment's own
    "evaluate.every=100",
)
DEFAULTS = {"nodes": 0, "rounds": 0, "torch": False, "result": ""}


def main() -> None:
    """Print both tables in Markdown."""
    with tempfile.TemporaryDirectory(prefix="fedgraft-round-") as name:
        folder = Path(name)
        plan, path = load_plan("pneumonia", SETTINGS), find_plan("pneumonia")
        files = enumerate(write_nodes(plan, path, folder / "nodes"))
        (folder / "plan.yaml").write_text(plan_yaml(plan))
        weights = str(resolve(str(plan.backbone.weights), path.parent))
        with Federation(
            folder, {f"node-{k}": file for k, file in files}, folder / "plan.yaml"
        ) as federation:
            seconds, parts = ours(federation, weights)
            for node in federation.files:
                federation.stop(node)
                federation.start_node(node, supernode(federation, node))
            for node in federation.files:
                until(
                    f"{node} is connected", lambda node=node: "SuperNode ID" in federation.log(node)
                )
            floor, torch = (nothing(federation, torch=torch) for torch in (False, True))
    print("| app | seconds a round | ÷ nothing |\n|---|---:|---:|")
    for title, mean in (
        ("does nothing, on Flower as it is", floor),
        ("imports torch, does nothing", torch),
        ("fedgraft, `pneumonia`, the head alone", seconds),
    ):
        print(f"| {title} | {mean:.2f} | {mean / floor:.2f} |")
    print("\n| in one round of ours | seconds |\n|---|---:|")
    for what, part in parts.items():
        print(f"| {what} | {part:.2f} |")


def ours(federation: Federation, weights: str) -> tuple[float, dict[str, float]]:
    """Mean seconds of a round of ours, and the parts that they are made of."""
    out, ends = federation.folder / "out", dict[int, float]()

    def look() -> None:
        for checkpoint in run_files.checkpoints_of(out):
            ends[run_files.round_of(checkpoint)] = checkpoint.stat().st_mtime

    plan = str(federation.folder / "plan.yaml")
    flower = connect(federation.server)
    config = {"plan": plan, "weights": weights, "out": str(out), "nodes-expected": NODES}
    run(flower, flower.make_app(), config, look)
    parts = [part for node in federation.files for part in parts_of(federation, node, out, ends)]
    return json.loads((out / run_files.RESULT).read_text())["seconds"]["rounds"] / ROUNDS, {
        what: statistics.mean(part[what] for part in parts) for what in parts[0]
    }


def parts_of(
    federation: Federation, node: str, out: Path, ends: dict[int, float]
) -> list[dict[str, float]]:
    """Where the seconds of each round but the first went, as one node saw it; the parts add up to
    the round.
    """
    said = {
        (event, int(number)): datetime.fromisoformat(when).timestamp()
        for when, event, number in re.findall(
            r"^(\S+Z)  (message|answered) .*group (\d+)$", federation.log(node), re.MULTILINE
        )
    }
    lines = [json.loads(line) for line in (out / run_files.METRICS).read_text().splitlines()]
    audit = load_node(federation.files[node]).audit_path
    assert audit is not None
    kept = {
        (entry.kind, entry.body["round"]): entry.time
        for entry in Journal(audit).entries()
        if entry.body["kind"] == "train" and "round" in entry.body
    }
    name, found = load_node(federation.files[node]).name, []
    for number in range(2, ROUNDS + 1):
        trained = next(
            line["train"]["seconds"]
            for line in lines
            if (line["round"], line["node"]) == (number, name)
        )
        came, began, ended = said["message", number], kept["in", number], kept["out", number]
        found.append(
            {
                "until the SuperNode asks, every second": came - ends[number - 1],
                "executor, process, approved code read and checked": began - came,
                "plan, backbone, data opened; the answer packed": ended - began - trained,
                "the adapter trained": trained,
                "the answer sent; the SuperNode looks every 0.5 s": said["answered", number]
                - ended,
                "the server's poll, the slower node, averaging, checkpoint": ends[number]
                - said["answered", number],
            }
        )
    return found


def supernode(federation: Federation, node: str) -> list[str]:
    """Flower's own SuperNode as it is, with this node's key."""
    home = federation.folder / "homes" / node
    home.mkdir(parents=True)
    connection = load_node(federation.files[node]).connection
    assert connection is not None
    return [
        *(
            "env",
            f"FLWR_HOME={home}",
            program("flower-supernode"),
            "--superlink",
            connection.superlink,
        ),
        *("--root-certificates", connection.root_certificates),
        *("--auth-supernode-private-key", connection.private_key),
        *("--host", "127.0.0.1", "--port", str(free_ports(1)[0])),
    ]


def nothing(federation: Federation, *, torch: bool) -> float:
    """Mean seconds of a round of the app that does nothing."""
    app, found = federation.folder / "nothing", federation.folder / f"{torch}.json"
    write_project(app, "nothing", "nothing_app", DEFAULTS)
    config = {"nodes": NODES, "rounds": ROUNDS, "torch": torch, "result": str(found)}
    run(connect(federation.server), app, config)
    return statistics.mean(json.loads(found.read_text()))


def run(
    flower: Flower, app: Path, config: RunConfig, look: Callable[[], None] = lambda: None
) -> None:
    """Run an app to its end, with a look at something twice a second."""
    run_id = flower.submit(app, config)
    while not (status := flower.status(run_id)).startswith("finished"):
        for _ in range(10):  # each question is a process that takes time from what is measured
            time.sleep(0.5)
            look()
    if status != COMPLETED:
        sys.exit(f"Flower ended the run as {status}\n{flower.log(run_id)}")


if __name__ == "__main__":
    main()
