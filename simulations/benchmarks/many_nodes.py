"""What a simulation of many nodes takes: peak memory, and time a node-round.

    python -m fedgraft.simulations.benchmarks.many_nodes              # 100 to 10,000 nodes
    python -m fedgraft.simulations.benchmarks.many_nodes --run 1000   # one of them, as JSON

Every count of nodes is a process of its own, since the peak of a process never falls. The table of
records is the same for all: with ten times the nodes each has a tenth of the records.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fedgraft.simulations.benchmarks.result_files import ResultTable, record
from fedgraft.simulations.simulate import SimulationOptions, simulate_plan

NODES = (100, 1000, 3000, 10_000)
ROUNDS = 1
RECORDS = 150_000
COLUMNS = 8
MEGABYTE = 1e6
PACKAGES = ("flwr", "torch")
NAMES = [f"x{number}" for number in range(COLUMNS)]
LISTED = ", ".join(NAMES)
# numbers of these ranges have mean 0 and deviation 1: the network takes them as they are
PLAN = f"""
name: many-nodes
task:
  kind: tabular-classification
  classes: [a, b]
  columns: [{LISTED}]
  ranges: [{{columns: [{LISTED}], low: -1.7320508075688772, high: 1.7320508075688772}}]
  target: target
backbone: {{name: mlp, hidden: [8]}}
adapter: {{method: head}}
train: {{rounds: {ROUNDS}, batch_size: 16}}
simulation: {{data: table.csv, partition: {{kind: iid, min_examples: 2}}}}
"""


def main() -> None:
    """Measure every count of nodes and write the table, or one count and print it."""
    if "--run" in sys.argv:
        print(json.dumps(measure(int(sys.argv[-1]))))
        return
    table = ResultTable(("nodes", "peak MB", "seconds", "ms a node-round"), words=())
    for nodes in NODES:
        command = [sys.executable, "-m", "fedgraft.simulations.benchmarks.many_nodes"]
        ended = subprocess.run(
            [*command, "--run", str(nodes)], capture_output=True, text=True, check=True
        )
        measured = json.loads(ended.stdout.splitlines()[-1])
        table.add(*show(measured))
        print(measured, flush=True)
    record("many-nodes", "many-nodes", table, packages=PACKAGES)


def measure(nodes: int) -> dict[str, float]:
    """Return what one simulation takes: bytes of memory at most, seconds of all and of rounds."""
    with tempfile.TemporaryDirectory(prefix="fedgraft-many-") as folder:
        plan = Path(folder) / "plan.yaml"
        plan.write_text(PLAN)
        write_table(Path(folder) / "table.csv")
        started = time.perf_counter()
        result = simulate_plan(
            str(plan),
            overrides=[f"simulation.nodes={nodes}"],
            out=Path(folder) / "run",
            options=SimulationOptions(baselines=(), quiet=True),
        )
        seconds = time.perf_counter() - started
    return {
        "nodes": nodes,
        "bytes": result["peak_rss_bytes"],
        "seconds": seconds,
        "rounds": result["seconds"]["rounds"],
    }


def write_table(path: Path) -> None:
    """Write records of two classes that a line parts, but for noise."""
    rng = np.random.default_rng(7)
    values = rng.normal(size=(RECORDS, COLUMNS))
    score = values.sum(axis=1) + rng.normal(size=RECORDS)
    table = np.column_stack([values, score > 0])
    formats = ["%.4f"] * COLUMNS + ["%d"]
    np.savetxt(path, table, formats, ",", header=",".join([*NAMES, "target"]), comments="")


def show(measured: dict[str, float]) -> list[str]:
    """Return a row of the table."""
    each = 1000 * measured["rounds"] / (measured["nodes"] * ROUNDS)
    return [
        f"{measured['nodes']:,}",
        f"{measured['bytes'] / MEGABYTE:,.0f}",
        f"{measured['seconds']:,.0f}",
        f"{each:.1f}",
    ]


if __name__ == "__main__":
    main()
