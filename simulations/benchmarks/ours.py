"""fedgraft's in-process engine on the workload.

python -m fedgraft.simulations.benchmarks.ours ADAPTER SEED WORKERS

With FEDGRAFT_ACTIVATIONS=FOLDER what the frozen layers compute is kept there; a second run finds
it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from fedgraft.common.plan.plan_file import find_plan
from fedgraft.simulations.benchmarks.workload import PLAN, report, the_plan
from fedgraft.simulations.engines.engine import EngineOptions, nodes_on_disk, simulate


def run(adapter: str, seed: int, workers: int) -> None:
    """Simulate and report."""
    plan = the_plan(adapter, seed)
    with tempfile.TemporaryDirectory() as folder, nodes_on_disk(plan, find_plan(PLAN)) as nodes:
        run = simulate(
            plan,
            find_plan(PLAN),
            Path(folder) / "run",
            nodes=nodes,
            options=EngineOptions(workers=workers),
        )
    result = run.to_json()
    sent = result["bytes"]["rounds"][-1]
    report(
        accuracy=result["final"]["global"]["accuracy"],
        seconds=result["seconds"]["total"],
        versions={name: result["versions"][name] for name in ("fedgraft", "torch")},
        wire=sent["down"] / sent["nodes"] / result["bytes"]["adapter"],
        rss=result["peak_rss_bytes"],
    )


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
