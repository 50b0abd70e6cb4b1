"""fedgraft's in-process engine on the workload.

    python -m fedgraft.simulations.benchmarks.ours ADAPTER SEED WORKERS [one-round] [bfloat16]

With `one-round` the head is solved for from sums, on the same deal of the same records; with
`bfloat16` the frozen part is computed in it.
With FEDGRAFT_ACTIVATIONS=FOLDER what the frozen layers compute is kept there; a second run finds
it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.simulations.benchmarks.workload import PLAN, overrides, report
from fedgraft.simulations.engines.engine import EngineOptions, nodes_on_disk, simulate

CHANGES = {
    "one-round": "train={method: closed-form}",
    "bfloat16": "backbone.precision=bfloat16",
}


def run(adapter: str, seed: int, workers: int, more: Sequence[str] = ()) -> None:
    """Simulate and report."""
    plan = load_plan(PLAN, [*overrides(adapter, seed), *more])
    plan_path = find_plan(PLAN)
    with tempfile.TemporaryDirectory() as folder, nodes_on_disk(plan, plan_path) as nodes:
        out = Path(folder) / "run"
        options = EngineOptions(workers=workers)
        result = simulate(plan, plan_path, out, nodes=nodes, options=options).to_json()
    sent = result["bytes"]["rounds"][-1]
    down = sent["down"] / sent["nodes"]
    versions = result["versions"]
    report(
        accuracy=result["final"]["global"]["accuracy"],
        seconds=result["seconds"]["total"],
        versions={"fedgraft": versions["fedgraft"], "torch": versions["torch"]},
        wire=down / result["bytes"]["adapter"],
        rss=result["peak_rss_bytes"],
    )


if __name__ == "__main__":
    changes = [CHANGES[word] for word in sys.argv[4:]]
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), changes)
