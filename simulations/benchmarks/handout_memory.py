"""What a hand-out of a large backbone takes: peak memory of every process, and seconds.

    .venv/bin/python -m fedgraft.simulations.benchmarks.handout_memory

Real processes on loopback, three nodes, TLS, node keys and the gateway: ViT-B/16 with random
values, 343 MB in a `.safetensors` file, to three nodes that lack it, each with a disk of its own;
the median of three runs. Idle is what a process has before the run, of the ServerApp what it has
after its imports, and of the ClientApp what it has when it answers the offer.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgraft.client.node.node_file import load_node
from fedgraft.client.store.journal import Journal
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.benchmarks.result_files import ResultTable, record
from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.deployment.memory_watch import (
    KINDS,
    Memory,
    MemoryWatch,
    count_processor_seconds,
)
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
# what the ServerApp's process has behind it before it does anything
IMPORTS = "import flwr.superlink.cli, fedgraft.server.app"
LOOK = 0.1


@dataclass(frozen=True)
class Measured:
    """One hand-out: seconds, those that all processes computed for it, bytes down, and memory of
    each kind of process: idle, before the first part, and in the hand-out.
    """

    seconds: float
    processor: float
    down: int
    idle: dict[str, Memory]
    before: dict[str, Memory]
    peaks: dict[str, Memory]


def main() -> None:
    """Print the table in Markdown and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--table", default="handout", help="the name it is recorded under")
    arguments = parser.parse_args()
    imports = measure_imports()
    measured = []
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory(prefix="fedgraft-handout-") as folder:
            measured.append(measure(Path(folder), imports))
        print(describe(measured[-1]), file=sys.stderr, flush=True)
    table = show(measured)
    print(table.to_markdown())
    record("handout", arguments.table, table, packages=PACKAGES, notes=[words_of(measured)])


def measure(folder: Path, imports: Memory) -> Measured:
    """Run one federation until its first round begins: by the nodes' logs, from the first part that
    one of them has to the first message of a round.
    """
    plan_file = write_plan(folder)
    nodes = {}
    for number, file in enumerate(write_nodes(load_plan(plan_file), plan_file, folder / "nodes")):
        nodes[f"node-{number}"] = file
    began: dict[str, float] = {}
    computed: dict[str, float] = {}
    with LocalFederation(folder, nodes, plan_file) as federation:
        part_disks(federation)
        with MemoryWatch(federation) as watch:
            # what they have while nothing is asked of them
            time.sleep(10 * LOOK)
            watch.begin("offer")
            run = federation.begin_run(plan_file, folder / "runs" / "first")
            for phase, word in (("hand-out", "query.backbone"), ("after", "group 1")):
                while run.poll() is None and not was_sent(federation, word):
                    time.sleep(LOOK)
                watch.begin(phase)
                began[phase] = time.monotonic()
                computed[phase] = count_processor_seconds(federation)
        if run.poll() is not None:
            sys.exit("\n".join(run.communicate()))
        # what comes now is no hand-out
        run.kill()
        down = sum(count_bytes(file) for file in federation.files.values())
    before = watch.peaks["offer"]
    idle = watch.peaks["idle"] | {"ServerApp": imports, "ClientApp": before["ClientApp"]}
    seconds = began["after"] - began["hand-out"]
    processor = computed["after"] - computed["hand-out"]
    return Measured(seconds, processor, down, idle, before, watch.peaks["hand-out"])


def count_bytes(file: Path) -> int:
    """Return the bytes of a backbone's messages that a node's audit log counts."""
    path = load_node(file).audit_path
    assert path is not None
    bodies = [entry.body for entry in Journal(path).entries() if entry.kind == "in"]
    return sum(body["bytes"] for body in bodies if body["kind"] == "query.backbone")


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


def part_disks(federation: LocalFederation) -> None:
    """Give each node a disk of its own, as hospitals have; simulated nodes share one."""
    for file in federation.files.values():
        shared = load_node(file).store / "backbones"
        if shared.is_symlink():
            shared.unlink()


def was_sent(federation: LocalFederation, word: str) -> bool:
    """Return whether a node was sent a message with a word in its line of the log."""
    return any(word in federation.log(node) for node in federation.files)


def measure_imports() -> Memory:
    """Return the memory of a process that has the ServerApp's imports and does nothing."""
    code = (
        f"{IMPORTS}\nfrom fedgraft.simulations.deployment.memory_watch import read_memory"
        "\nmemory = read_memory('self')\nprint(memory.resident, memory.anonymous)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    resident, anonymous = done.stdout.split()
    return Memory(int(resident), int(anonymous))


def show(measured: list[Measured]) -> ResultTable:
    """Return the table of medians, MB."""
    head = ("process", "idle, MB", "before the first part", "peak", "above idle", "not of a file")
    table = ResultTable(head)
    for kind in KINDS:
        idle = statistics.median(each.idle[kind].resident for each in measured)
        before = statistics.median(each.before[kind].resident for each in measured)
        peak = statistics.median(each.peaks[kind].resident for each in measured)
        own = statistics.median(
            each.peaks[kind].anonymous - each.idle[kind].anonymous for each in measured
        )
        cells = [f"{size / MEGABYTE:,.0f}" for size in (idle, before, peak, peak - idle, own)]
        table.add(kind, *cells)
    return table


def words_of(measured: list[Measured]) -> str:
    """Return how long it took, and how much was sent."""
    seconds = statistics.median(each.seconds for each in measured)
    processor = statistics.median(each.processor for each in measured)
    down = statistics.median(each.down for each in measured)
    took = f"{seconds:.0f} s, {processor:.0f} s of processors"
    return f"{took}, for {down / MEGABYTE:,.0f} MB to {NODES} nodes"


def describe(measured: Measured) -> str:
    """Return one run in a line."""
    peaks = [f"{kind} {memory.resident / MEGABYTE:.0f}" for kind, memory in measured.peaks.items()]
    took = f"{measured.seconds:.1f} s, {measured.processor:.1f} s of processors"
    return f"{took}, {measured.down:,} bytes; {', '.join(peaks)} MB"


if __name__ == "__main__":
    main()
