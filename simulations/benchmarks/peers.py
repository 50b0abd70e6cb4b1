"""fedgraft beside what a user would pick instead: one table, from one run on one machine.

    make bench
        everything, about an hour on two cores
    .venv/bin/python -m fedgraft.simulations.benchmarks.peers --only ours,floor,pfl --repeats 1
    .venv/bin/python -m fedgraft.simulations.benchmarks.peers --table
        print again what was measured

10 nodes × 20 rounds × 1 local epoch (`workload.py`), two cores, one torch thread for each worker. A
repeat is a seed, and with it another deal of the data and other initial values. Each competitor is
a process of its own. *wall* is what a user waits for: from the start of the command to its end,
imports and all; *rounds* is what comes after the imports. What was measured is kept in
build/bench/peers.json and not measured again, unless `--again`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedgraft.simulations.benchmarks import environments
from fedgraft.simulations.benchmarks.competitors import COMPETITORS, Competitor
from fedgraft.simulations.benchmarks.peers_table import Measured, make_tables
from fedgraft.simulations.benchmarks.result_files import record
from fedgraft.simulations.benchmarks.workload import prepare

FIRST_SEED = 7
ROOT = Path(__file__).resolve().parents[2]
RESULTS = environments.FOLDER / "peers.json"
# seconds for one run
LIMIT = 1800
LONGEST_FAILURE = 300


def main() -> None:
    """Measure what is asked for, seed by seed, print the table and record it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join(COMPETITORS)
    parser.add_argument("--only", default=",".join(COMPETITORS), help=f"some of {known}")
    parser.add_argument("--adapters", default="head,lora,full")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="measure anew what was measured")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    unknown = sorted(set(options.only.split(",")) - set(COMPETITORS))
    if unknown:
        parser.error(f"--only: {unknown[0]!r} is none of {known}")

    measured: Measured = {}
    if RESULTS.exists():
        measured = json.loads(RESULTS.read_text())
    if not options.table:
        measure_missing(options, measured)
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
    for name, title, table in make_tables(measured):
        print(f"\n**{title}**\n\n{table.to_markdown()}")
        if not options.table:
            record("peers", name, table, packages=("torch", "flwr"))


# ── measure ───────────────────────────────────────────────────────────────────────────────────────
def measure_missing(options: argparse.Namespace, measured: Measured) -> None:
    """Measure what is asked for and not known; keep each as it is done."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for name, adapter, seed in list_runs(options):
        key = f"{name}/{adapter}/{seed}"
        known = "wall" in measured.get(key, {})
        if known and not options.again:
            continue
        measured[key] = measure(COMPETITORS[name], adapter, seed)
        print(key, json.dumps(measured[key]), file=sys.stderr, flush=True)
        RESULTS.write_text(json.dumps(measured, indent=1))


def list_runs(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Yield a competitor's name, an adapter and a seed, seed by seed."""
    for seed in range(FIRST_SEED, FIRST_SEED + options.repeats):
        for name in options.only.split(","):
            for adapter in options.adapters.split(","):
                if adapter in COMPETITORS[name].adapters:
                    yield name, adapter, seed


def measure(competitor: Competitor, adapter: str, seed: int) -> dict[str, Any]:
    """Run one competitor once; return its report and the wall-clock seconds of its process, or why
    there is none.
    """
    if competitor.peer:
        failure = environments.make_environment(competitor.peer)
        if failure:
            return {"failed": f"could not be installed: {failure}"}

    command = competitor.command(adapter, seed, prepare(environments.FOLDER, seed))
    with tempfile.TemporaryDirectory() as activations:
        environment = make_environment(competitor)
        if competitor.keeps_activations:
            environment["FEDGRAFT_ACTIVATIONS"] = activations
            # the run before, which puts them there
            run_command(command, environment)
        return run_command(command, environment)


def make_environment(competitor: Competitor) -> dict[str, str]:
    """Return the environment of a competitor's process: the checkout can be imported, and torch has
    its threads.
    """
    data = os.environ.get("FEDGRAFT_DATA") or str(ROOT.parent / "shared" / "data")
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(competitor.torch_threads),
        "FEDGRAFT_DATA": data,
        "FLWR_TELEMETRY_ENABLED": "0",
    }


def run_command(command: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a command; return the last line of JSON that it prints, with its seconds, or why there is
    none.
    """
    started = time.perf_counter()
    try:
        ran = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {LIMIT} s"}
    wall = time.perf_counter() - started
    reports = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    if ran.returncode or not reports:
        lines = ran.stderr.strip().splitlines() or ["no output"]
        return {"failed": lines[-1][:LONGEST_FAILURE]}
    return json.loads(reports[-1]) | {"wall": wall}


if __name__ == "__main__":
    main()
