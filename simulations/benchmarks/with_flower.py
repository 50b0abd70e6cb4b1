"""Flower's stock simulation (Ray) on the workload: a SuperLink, `flwr run`, two clients at a time
on two cores.

    python -m fedgraft.simulations.benchmarks.with_flower ADAPTER SEED SHARDS

`seconds` begins when the SuperLink answers: what `flwr run` itself takes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from fedgraft.simulations.benchmarks.project import write_project
from fedgraft.simulations.benchmarks.workload import NODES, report
from fedgraft.simulations.engines.flower_engine import start_and_follow, superlink

DEFAULTS = {"adapter": "", "seed": 0, "nodes": 0, "shards": "", "result": ""}
PACKAGES = ("flwr", "ray", "torch")


def run(adapter: str, seed: int, shards: Path) -> None:
    """Run the stock app and report."""
    with tempfile.TemporaryDirectory(prefix="stock-flower-") as folder:
        neutral = Path(folder)
        app = neutral / "app"
        result = neutral / "result.json"
        write_project(app, "stock", "stock_flower_app", DEFAULTS)
        config = {
            "adapter": adapter,
            "seed": seed,
            "nodes": NODES,
            "shards": str(shards),
            "result": str(result),
        }
        with superlink(neutral) as flower:
            started = time.perf_counter()
            start_and_follow(app, config, flower, nodes=NODES)
            seconds = time.perf_counter() - started
        measured = json.loads(result.read_text())
    versions = {name: version(name) for name in PACKAGES}
    report(**measured, seconds=seconds, versions=versions)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve())
