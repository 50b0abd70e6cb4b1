"""One round of a deployment beside one of a Flower app that does nothing: real processes, two nodes, loopback.

    .venv/bin/python -m simulations.benchmarks.deployment_round

All three apps run on the same SuperLink and SuperNodes, one after the other; the mean over all rounds is shown.
Without TLS, so that only the apps differ. *training* is what the nodes themselves took for their steps.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common.plan_file import find_plan, load_plan, plan_yaml, resolve
from server.flower import COMPLETED, Flower, RunConfig, environment, program
from simulations.flower_engine import free_port, wait_for_port
from simulations.partition import write_nodes

NODES, ROUNDS = 2, 7
SETTINGS = (f"simulation.nodes={NODES}", f"train.rounds={ROUNDS}", "adapter.method=bias", "evaluate.every=100")
PROJECT = """
[project]
name = "nothing"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "nothing_app:server"
clientapp = "nothing_app:client"
[tool.flwr.app.config]
nodes = 0
rounds = 0
torch = false
result = ""
"""


def main() -> None:
    """Print the table in Markdown."""
    with tempfile.TemporaryDirectory(prefix="fedgraft-round-") as name:
        folder = Path(name)
        plan, path = load_plan("pneumonia", SETTINGS), find_plan("pneumonia")
        nodes = write_nodes(plan, path, folder / "nodes")
        (folder / "plan.yaml").write_text(plan_yaml(plan))
        app = folder / "nothing"
        app.mkdir()
        (app / "pyproject.toml").write_text(PROJECT)
        shutil.copy(Path(__file__).with_name("nothing_app.py"), app)
        weights = str(resolve(str(plan.backbone.weights), path.parent))
        print("| app | seconds a round | ÷ nothing | training, s |\n|---|---:|---:|---:|", flush=True)
        with deployment(folder, nodes) as flower:
            floor = 0.0
            for title, torch in (("does nothing", False), ("imports torch, does nothing", True)):
                found = folder / f"{torch}.json"
                run(flower, app, {"nodes": NODES, "rounds": ROUNDS, "torch": torch, "result": str(found)})
                seconds = statistics.mean(json.loads(found.read_text()))
                floor = floor or seconds
                print(row(title, seconds, floor, "–"), flush=True)
            out = folder / "out"
            config = {"plan": str(folder / "plan.yaml"), "weights": weights, "out": str(out), "nodes-expected": NODES}
            run(flower, flower.bundled(), config)
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            trained = statistics.median(line["train"]["seconds"] for line in lines if "train" in line)
            seconds = json.loads((out / "result.json").read_text())["seconds"]["rounds"] / ROUNDS
            print(row("fedgraft, `pneumonia` with biases", seconds, floor, f"{trained:.2f}"))


def row(title: str, seconds: float, floor: float, training: str) -> str:
    """One line of the table."""
    return f"| {title} | {seconds:.2f} | {seconds / floor:.2f} | {training} |"


def run(flower: Flower, app: Path, config: RunConfig) -> None:
    """Run an app to its end."""
    run_id = flower.submit(app, config)
    while not (status := flower.status(run_id)).startswith("finished"):
        time.sleep(5.0)  # each question is a process that takes time from what is measured
    if status != COMPLETED:
        sys.exit(f"Flower ended the run as {status}\n{flower.log(run_id)}")


@contextlib.contextmanager
def deployment(folder: Path, nodes: list[Path]) -> Iterator[Flower]:
    """A SuperLink and a SuperNode for each node.yaml."""
    port = free_port()
    flower = Flower.connect(folder / "flower", f"127.0.0.1:{port}", ca=None)
    log_path = folder / "log"
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(log_path.open("w"))

        def start(*words: str) -> subprocess.Popen:
            process = subprocess.Popen(
                [program(words[0]), *words[1:]], cwd=flower.folder, stdout=log, stderr=log,
                env=environment(flower.home) | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        link = start(
            "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port),
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        wait_for_port(port, link, log_path)
        for path in nodes:
            start(
                "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}",
                "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", f'node="{path}"',
            )  # fmt: skip
        yield flower


if __name__ == "__main__":
    main()
