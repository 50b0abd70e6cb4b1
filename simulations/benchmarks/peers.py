"""fedgraft beside what a user would pick instead: one table, from one run on one machine.

    make bench                                                        everything, about an hour on
    two cores .venv/bin/python -m fedgraft.simulations.benchmarks.peers --only ours,floor,pfl
    --repeats 1 .venv/bin/python -m fedgraft.simulations.benchmarks.peers --table          print
    again what was measured

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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.simulations.benchmarks import environments
from fedgraft.simulations.benchmarks.workload import prepare

FIRST_SEED = 7
ROOT = Path(__file__).resolve().parents[2]
RESULTS = environments.FOLDER / "peers.json"
OURS = "fedgraft"
LIMIT = 1800  # seconds for one run
HEAD = (
    "| who | threads | wall, s (range) | rounds, s | wall ÷ ours | rounds ÷ ours | accuracy |"
    " versions |"
)


@dataclass(frozen=True)
class Competitor:
    """One row of the table: what it is, what runs it, with which adapters."""

    title: str
    threads: str
    words: Callable[[str, int, Path], list[str]]
    adapters: tuple[str, ...] = ("head", "lora")
    peer: str | None = None  # the environment it needs
    kept: bool = False  # activations stay on disk, and a run before this one put them there


def _here(
    module: str, *more: str, shards: bool = True, peer: str | None = None
) -> Callable[[str, int, Path], list[str]]:
    def words(adapter: str, seed: int, path: Path) -> list[str]:
        python = str(environments.python_of(peer)) if peer else sys.executable
        given = [str(path)] if shards else []
        return [
            python,
            "-m",
            f"fedgraft.simulations.benchmarks.{module}",
            adapter,
            str(seed),
            *given,
            *more,
        ]

    return words


COMPETITORS = {
    "ours": Competitor(OURS, "2 × 1", _here("ours", "2", shards=False)),
    "ours-kept": Competitor(
        "fedgraft, activations kept by the run before",
        "2 × 1",
        _here("ours", "2", shards=False),
        kept=True,
    ),
    "ours-1": Competitor("fedgraft, one worker", "1", _here("ours", "1", shards=False)),
    "floor": Competitor(
        "plain PyTorch, frozen prefix computed once: the floor", "1", _here("floor", "cached")
    ),
    "floor-full": Competitor(
        "plain PyTorch, whole network at each step", "1", _here("floor", "full")
    ),
    "flower": Competitor(
        "Flower, stock simulation (Ray)",
        "2 × 1",
        _here("with_flower"),
        adapters=("head", "lora", "full"),
    ),
    "pfl": Competitor("pfl, SimulatedBackend", "1", _here("with_pfl", peer="pfl"), peer="pfl"),
    "pfl-2": Competitor("pfl, SimulatedBackend", "2", _here("with_pfl", peer="pfl"), peer="pfl"),
    "nvflare": Competitor(
        "NVIDIA FLARE, simulator", "10 × 1", _here("with_nvflare", peer="nvflare"), peer="nvflare"
    ),
}


def measure(name: str, adapter: str, seed: int) -> dict[str, Any]:
    """Run one competitor once; its report and the wall-clock seconds of its process, or why there
    is none.
    """
    competitor = COMPETITORS[name]
    if competitor.peer and (failed := environments.make(competitor.peer)):
        return {"failed": f"could not be installed: {failed}"}
    shards = prepare(environments.FOLDER, seed)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "2" if competitor.threads == "2" else "1",
        "FEDGRAFT_DATA": os.environ.get("FEDGRAFT_DATA") or str(ROOT.parent / "shared" / "data"),
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    with tempfile.TemporaryDirectory() as kept:
        if competitor.kept:
            environment["FEDGRAFT_ACTIVATIONS"] = kept
        for _ in range(2 if competitor.kept else 1):
            started = time.perf_counter()
            try:
                ran = subprocess.run(
                    competitor.words(adapter, seed, shards), cwd=ROOT, env=environment, capture_output=True, text=True,
                    timeout=LIMIT, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return {"failed": f"not done within {LIMIT} s"}
            wall = time.perf_counter() - started
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    if ran.returncode or not lines:
        return {"failed": (ran.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    return json.loads(lines[-1]) | {"wall": wall}


def table(measured: dict[str, dict[str, Any]]) -> str:
    """The measurements in Markdown: medians over the seeds, each beside its accuracy and
    versions.
    """
    lines = []
    for adapter, title in (
        ("head", "head"),
        ("lora", "LoRA r=8 in the last block"),
        ("full", "everything"),
    ):
        rows = []
        ours = _median(measured, "ours", "lora" if adapter == "full" else adapter)
        for name, competitor in COMPETITORS.items():
            runs = _runs(measured, name, adapter)
            good = [run for run in runs if "wall" in run]
            if not runs or adapter not in competitor.adapters:
                continue
            if not good:
                rows.append(
                    f"| {competitor.title} | {competitor.threads} | – | – | – | – |"
                    f" {runs[0]['failed']} |"
                )
                continue
            walls, rounds = [run["wall"] for run in good], [run["seconds"] for run in good]
            ratio = [
                f"{statistics.median(walls) / ours['wall']:.1f}",
                f"{statistics.median(rounds) / ours['seconds']:.1f}",
            ]
            accuracies = [run["accuracy"] for run in good]
            spread = f"{min(walls):.1f}–{max(walls):.1f}"
            versions = ", ".join(f"{key} {value}" for key, value in good[0]["versions"].items())
            rows.append(
                f"| {competitor.title} | {competitor.threads} | {statistics.median(walls):.1f}"
                f" ({spread}) | {statistics.median(rounds):.1f} | {ratio[0]} | {ratio[1]} |"
                f" {statistics.mean(accuracies):.3f} (n={len(good)}) | {versions} |"
            )
        if rows and ours:
            lines += [f"\n**{title}**\n", HEAD, "|---|---|---:|---:|---:|---:|---:|---|", *rows]
    return "\n".join(lines)


def _runs(measured: dict[str, dict[str, Any]], name: str, adapter: str) -> list[dict[str, Any]]:
    return [run for key, run in measured.items() if key.split("/")[:2] == [name, adapter]]


def _median(measured: dict[str, dict[str, Any]], name: str, adapter: str) -> dict[str, float]:
    good = [run for run in _runs(measured, name, adapter) if "wall" in run]
    return (
        {key: statistics.median(run[key] for run in good) for key in ("wall", "seconds")}
        if good
        else {}
    )


def main() -> None:
    """Measure what is asked for, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default=",".join(COMPETITORS), help="some of " + ", ".join(COMPETITORS)
    )
    parser.add_argument("--adapters", default="head,lora,full")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="measure anew what was measured")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    measured: dict[str, dict[str, Any]] = (
        json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    )
    unknown = set(asked.only.split(",")) - set(COMPETITORS)
    if unknown:
        parser.error(f"--only: {sorted(unknown)[0]!r} is none of {', '.join(COMPETITORS)}")
    for seed in range(FIRST_SEED, FIRST_SEED + (0 if asked.table else asked.repeats)):
        for name in asked.only.split(","):
            for adapter in asked.adapters.split(","):
                key = f"{name}/{adapter}/{seed}"
                if adapter not in COMPETITORS[name].adapters or (
                    "wall" in measured.get(key, {}) and not asked.again
                ):
                    continue
                measured[key] = measure(name, adapter, seed)
                print(key, json.dumps(measured[key]), file=sys.stderr, flush=True)
                RESULTS.parent.mkdir(parents=True, exist_ok=True)
                RESULTS.write_text(json.dumps(measured, indent=1))
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
    print(table(measured))


if __name__ == "__main__":
    main()
