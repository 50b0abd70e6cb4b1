"""What a hand-out of a large backbone takes: peak memory of every process, and seconds.

    .venv/bin/python -m fedgraft.simulations.benchmarks.handout_memory

Real processes on loopback, three nodes, TLS, node keys and the gateway: ViT-B/16 with random
values, 343 MB in a `.safetensors` file, to three nodes that lack it; the median of three runs. Idle
is what a process has before the run (of the ServerApp and the ClientApp: after their imports).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgraft.common import run_files
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.benchmarks.result_files import ResultTable, record
from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.deployment.memory_watch import KINDS, Memory, MemoryWatch
from fedgraft.simulations.simulated_nodes import write_nodes

NODES = 3
RUNS = 3
RECORDS = 60
MEGABYTE = 1e6
PACKAGES = ("flwr", "torch", "safetensors")
PLAN = """
name: vit
task: {kind: image-classification, classes: [dark, light]}
backbone: {name: vit_b_16, image_size: 32, weights: vit.safetensors}
adapter: {method: head}
train: {rounds: 1, batch_size: 16}
simulation: {nodes: 3, data: spots.npz, partition: {kind: iid}}
"""
# what the two short-lived processes have behind them before they do anything
IMPORTS = {
    "ServerApp": "import flwr.superlink.cli, fedgraft.server.app",
    "ClientApp": "import flwr.supernode.cli, opacus, fedgraft.client.app",
}
LOOK = 0.1


@dataclass(frozen=True)
class Measured:
    """One hand-out: seconds, bytes down, and memory of each kind of process."""

    seconds: float
    down: int
    idle: dict[str, Memory]
    peaks: dict[str, Memory]


def main() -> None:
    """Print the table in Markdown and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--table", default="handout", help="the name it is recorded under")
    arguments = parser.parse_args()
    imports = {kind: measure_imports(code) for kind, code in IMPORTS.items()}
    measured = []
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory(prefix="fedgraft-handout-") as folder:
            measured.append(measure(Path(folder), imports))
        print(describe(measured[-1]), file=sys.stderr, flush=True)
    table = show(measured)
    print(table.to_markdown())
    record("handout", arguments.table, table, packages=PACKAGES, notes=[words_of(measured)])


def measure(folder: Path, imports: dict[str, Memory]) -> Measured:
    """Run one federation until its first round begins."""
    plan_file = write_plan(folder)
    nodes = {}
    for number, file in enumerate(write_nodes(load_plan(plan_file), plan_file, folder / "nodes")):
        nodes[f"node-{number}"] = file
    out = folder / "runs" / "first"
    with LocalFederation(folder, nodes, plan_file) as federation:
        with MemoryWatch(federation) as watch:
            # what they have while nothing is asked of them
            time.sleep(10 * LOOK)
            watch.begin("hand-out")
            run = federation.begin_run(plan_file, out)
            while run.poll() is None and not first_round_began(federation):
                time.sleep(LOOK)
            watch.begin("after")
        said, errors = run.communicate()
        if run.returncode != 0:
            sys.exit(f"{said}\n{errors}")
    result = json.loads((out / run_files.RESULT).read_text())
    idle = watch.peaks["idle"] | imports
    handout = result["bytes"]["handout"]
    return Measured(result["seconds"]["handout"], handout["down"], idle, watch.peaks["hand-out"])


def write_plan(folder: Path) -> Path:
    """Write the plan, its backbone and its images; return the plan's path."""
    rng = np.random.default_rng(0)
    labels = np.arange(RECORDS) % 2
    grey = rng.integers(0, 100, (RECORDS, 8, 8)) + 120 * labels[:, None, None]
    np.savez(folder / "spots.npz", images=grey.astype(np.uint8), labels=labels)
    backbone = load_backbone("vit_b_16", image_size=32)
    save_backbone(backbone, folder / "vit.safetensors", {})
    path = folder / "plan.yaml"
    path.write_text(PLAN)
    return path


def first_round_began(federation: LocalFederation) -> bool:
    """Return whether a node was sent the first round."""
    return any("group 1" in federation.log(node) for node in federation.files)


def measure_imports(code: str) -> Memory:
    """Return the memory of a process that imports something and does nothing."""
    code += (
        "\nfrom fedgraft.simulations.deployment.memory_watch import read_memory"
        "\nmemory = read_memory('self')\nprint(memory.resident, memory.anonymous)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    resident, anonymous = done.stdout.split()
    return Memory(int(resident), int(anonymous))


def show(measured: list[Measured]) -> ResultTable:
    """Return the table of medians, MB."""
    table = ResultTable(("process", "idle, MB", "peak, MB", "above idle", "of it not of a file"))
    for kind in KINDS:
        idle = statistics.median(each.idle[kind].resident for each in measured)
        peak = statistics.median(each.peaks[kind].resident for each in measured)
        own = statistics.median(
            each.peaks[kind].anonymous - each.idle[kind].anonymous for each in measured
        )
        cells = [f"{size / MEGABYTE:,.0f}" for size in (idle, peak, peak - idle, own)]
        table.add(kind, *cells)
    return table


def words_of(measured: list[Measured]) -> str:
    """Return how long it took, and how much was sent."""
    seconds = statistics.median(each.seconds for each in measured)
    down = statistics.median(each.down for each in measured)
    return f"{seconds:.1f} s for {down / MEGABYTE:,.0f} MB to {NODES} nodes"


def describe(measured: Measured) -> str:
    """Return one run in a line."""
    peaks = [f"{kind} {memory.resident / MEGABYTE:.0f}" for kind, memory in measured.peaks.items()]
    return f"{measured.seconds:.1f} s, {measured.down:,} bytes; {', '.join(peaks)} MB"


if __name__ == "__main__":
    main()
