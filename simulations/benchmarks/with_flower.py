"""Flower's stock simulation (Ray) on the workload: a SuperLink, `flwr run`, two clients at a time on two cores.

    python -m simulations.benchmarks.with_flower ADAPTER SEED SHARDS

`seconds` begins when the SuperLink answers: what `flwr run` itself takes.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from simulations.benchmarks.workload import NODES, report
from simulations.flower_engine import start_and_follow, superlink

PROJECT = """
[project]
name = "stock"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "flower_app:server"
clientapp = "flower_app:client"
[tool.flwr.app.config]
adapter = ""
seed = 0
nodes = 0
shards = ""
result = ""
"""


def run(adapter: str, seed: int, shards: Path) -> None:
    """Run the stock app and report."""
    with tempfile.TemporaryDirectory(prefix="stock-flower-") as folder:
        neutral = Path(folder)
        app, found = neutral / "app", neutral / "result.json"
        app.mkdir()
        (app / "pyproject.toml").write_text(PROJECT)
        shutil.copy(Path(__file__).with_name("flower_app.py"), app)
        config = {"adapter": adapter, "seed": seed, "nodes": NODES, "shards": str(shards), "result": str(found)}
        with superlink(neutral) as flower:
            started = time.perf_counter()
            start_and_follow(app, config, flower, nodes=NODES)
            seconds = time.perf_counter() - started
        versions = {name: version(name) for name in ("flwr", "ray", "torch")}
        report(**json.loads(found.read_text()), seconds=seconds, versions=versions)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve())
