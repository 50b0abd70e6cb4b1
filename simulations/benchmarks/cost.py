"""Cost against work: seconds and memory as nodes, data and networks grow.

    .venv/bin/python -m fedgraft.simulations.benchmarks.cost nodes
        10, 100, 1,000 nodes, together and one by one
    .venv/bin/python -m fedgraft.simulations.benchmarks.cost spread
        the same 24,000 X-rays at 10, 100, 1,000 nodes
    .venv/bin/python -m fedgraft.simulations.benchmarks.cost data
        1×, 4×, 16× the data at 10 nodes
    .venv/bin/python -m fedgraft.simulations.benchmarks.cost networks
        ResNet-20, ResNet-18 at 64 px, ViT-B/16 at 224 px

Every row is a process of its own, so that its peak of resident memory is its own. Pages of
libraries count there: one row took 863 MiB on a machine just started and 640 half an hour later, so
compare rows of one run only. The data are the chest X-rays, repeated with a little noise as often
as a row needs; `processor` counts both cores, `wall` may be less.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.simulations.benchmarks.result_files import ResultTable, record
from fedgraft.simulations.benchmarks.workload import ADAPTERS, PLAN
from fedgraft.simulations.engines.engine import EngineOptions, nodes_on_disk, simulate

# training examples of a node while their number grows
PER_NODE = 24
NODES = (10, 100, 1000)
NETWORKS = (
    "{name: cifar-resnet20, weights: weights/cifar10_resnet20.safetensors}",
    "{name: resnet18, image_size: 64}",
    "{name: vit_b_16, image_size: 224}",
    "{name: vit_b_16, image_size: 224, precision: bfloat16}",
)
HEAD = (
    "row",
    "wall, s",
    "hand-out, s",
    "rounds, s",
    "processor, s",
    "per node and round, ms",
    "peak memory, MiB",
)
MODULE = "fedgraft.simulations.benchmarks.cost"


@dataclass(frozen=True)
class Work:
    """What one row has to do; an empty backbone is the plan's."""

    nodes: int
    examples: int
    rounds: int = 3
    together: bool = False
    backbone: str = ""
    adapter: str = "head"

    @property
    def title(self) -> str:
        """What sets the row apart: `nodes 10, examples 240, rounds 3`."""
        words = [f"nodes {self.nodes}", f"examples {self.examples}", f"rounds {self.rounds}"]
        if self.backbone:
            words += [f"backbone {self.backbone}", f"adapter {self.adapter}"]
        if self.together:
            words.append("together")
        return ", ".join(words)

    def overrides(self, data: str) -> list[str]:
        """Return what is set over the plan."""
        partition = "{kind: iid, min_examples: 1}"
        changes = [
            f"adapter={ADAPTERS[self.adapter]}",
            f"simulation={{nodes: {self.nodes}, data: {data}, partition: {partition}}}",
            f"train.rounds={self.rounds}",
        ]
        if self.backbone:
            changes.append(f"backbone={self.backbone}")
        return changes


@dataclass(frozen=True)
class Cost:
    """What a row took: seconds of wall clock and of the processor, peak memory in MiB."""

    total: float
    handout: float
    rounds: float
    processor: float
    mib: float
    accuracy: float


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────
def list_more_nodes() -> list[Work]:
    """Return nodes that bring data of their own."""
    rows = []
    for together in (False, True):
        for nodes in NODES:
            rows.append(Work(nodes, PER_NODE * nodes, together=together))
    return rows


def list_spread_nodes() -> list[Work]:
    """Return the same data at ever more nodes."""
    rows = []
    for together in (False, True):
        for nodes in NODES:
            rows.append(Work(nodes, PER_NODE * NODES[-1], together=together))
    return rows


def list_more_data() -> list[Work]:
    """Return ever more data at the same nodes."""
    return [Work(10, 2428 * times) for times in (1, 4, 16)]


def list_networks() -> list[Work]:
    """Return ever larger networks, the head and LoRA."""
    rows = []
    for backbone in NETWORKS:
        for adapter in ("head", "lora"):
            rows.append(Work(4, 96, rounds=2, backbone=backbone, adapter=adapter))
    return rows


ROWS: Mapping[str, Callable[[], list[Work]]] = {
    "nodes": list_more_nodes,
    "spread": list_spread_nodes,
    "data": list_more_data,
    "networks": list_networks,
}


# ── one row ───────────────────────────────────────────────────────────────────────────────────────
def write_data(path: Path, examples: int, seed: int = 0) -> None:
    """Write `examples` training X-rays and 468 of test, drawn from the real ones; repeated ones get
    noise.
    """
    rng = np.random.default_rng(seed)
    plan = load_plan(PLAN)
    assert plan.simulation is not None
    with np.load(resolve(plan.simulation.files[0], find_plan(PLAN).parent)) as real:
        rows = rng.permutation(np.resize(np.arange(len(real["train_images"])), examples))
        noise = rng.integers(-3, 4, (examples, 28, 28), np.int16)
        images = real["train_images"][rows].astype(np.int16) + noise
        np.savez(
            path,
            train_images=images.clip(0, 255).astype(np.uint8),
            train_labels=real["train_labels"][rows],
            test_images=real["test_images"],
            test_labels=real["test_labels"],
        )


def run(work: Work, data: str) -> Cost:
    """Do one row's work in this process and return what it took."""
    plan = load_plan(PLAN, work.overrides(data))
    plan_path = find_plan(PLAN)
    with tempfile.TemporaryDirectory() as folder, nodes_on_disk(plan, plan_path) as nodes:
        out = Path(folder) / "run"
        before = _processor_seconds()
        options = EngineOptions(together=work.together)
        finished = simulate(plan, plan_path, out, nodes=nodes, options=options)
        processor = _processor_seconds() - before
    result = finished.to_json()
    seconds = result["seconds"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Cost(
        total=seconds["total"],
        handout=seconds["handout"],
        rounds=seconds["rounds"],
        processor=processor,
        mib=peak / 1024,
        accuracy=result["final"]["global"]["accuracy"],
    )


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run_alone(work: Work) -> Cost:
    """Do one row's work in a process of its own. Raise `RuntimeError` where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        # here, so that the row's peak of memory is its own
        write_data(data, work.examples)
        words = [sys.executable, "-m", MODULE, "--row", json.dumps(asdict(work)), str(data)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1]
        raise RuntimeError(last[:200])
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


# ── table ─────────────────────────────────────────────────────────────────────────────────────────
def main(kind: str) -> None:
    """Print a table in Markdown, a line for each row as it is done, and record it."""
    print(f"{os.cpu_count()} cores, one torch thread for each of two workers")
    table = ResultTable(HEAD)
    table.print_head()
    for work in ROWS[kind]():
        try:
            table.add(work.title, *show_cost(work, run_alone(work)))
        except RuntimeError as error:
            table.add(f"{work.title}: failed: {error}", *["–"] * (len(HEAD) - 1))
        table.print_last()
    record("cost", kind, table)


def show_cost(work: Work, cost: Cost) -> list[str]:
    """Return the cells of a row after its title."""
    each = 1000 * cost.rounds / work.nodes / work.rounds
    seconds = [cost.total, cost.handout, cost.rounds, cost.processor, each]
    cells = [f"{value:.1f}" for value in seconds]
    return [*cells, f"{cost.mib:.0f}"]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--row"]:
        _, _, row, data_file = sys.argv
        print(json.dumps(asdict(run(Work(**json.loads(row)), data_file))))
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "nodes")
