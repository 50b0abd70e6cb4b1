"""Cost against work: seconds and memory as nodes, data and networks grow.

    .venv/bin/python -m fedgraft.simulations.benchmarks.cost nodes        10, 100, 1,000 nodes,
    together and one by one .venv/bin/python -m fedgraft.simulations.benchmarks.cost spread
    the same 24,000 X-rays at 10, 100, 1,000 nodes .venv/bin/python -m
    fedgraft.simulations.benchmarks.cost data         1×, 4×, 16× the data at 10 nodes
    .venv/bin/python -m fedgraft.simulations.benchmarks.cost networks     ResNet-20, ResNet-18 at 64
    px, ViT-B/16 at 224 px

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
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.simulations.benchmarks.workload import ADAPTERS, PLAN

PER_NODE = 24  # training examples of a node while their number grows
ROWS: dict[str, list[dict[str, Any]]] = {
    "nodes": [
        {"nodes": nodes, "examples": PER_NODE * nodes, "rounds": 3, "together": together}
        for together in (False, True)
        for nodes in (10, 100, 1000)
    ],
    "spread": [
        {"nodes": nodes, "examples": PER_NODE * 1000, "rounds": 3, "together": together}
        for together in (False, True)
        for nodes in (10, 100, 1000)
    ],
    "data": [{"nodes": 10, "examples": 2428 * times, "rounds": 3} for times in (1, 4, 16)],
    "networks": [
        {"nodes": 4, "examples": 96, "rounds": 2, "backbone": backbone, "adapter": adapter}
        for backbone in (
            "{name: cifar-resnet20, weights: weights/cifar10_resnet20.safetensors}",
            "{name: resnet18, image_size: 64}",
            "{name: vit_b_16, image_size: 224}",
        )
        for adapter in ("head", "lora")
    ],
}


def write_data(path: Path, examples: int, seed: int = 0) -> None:
    """`examples` training X-rays and 468 of test, drawn from the real ones; repeated ones get
    noise.
    """
    rng = np.random.default_rng(seed)
    plan = load_plan(PLAN)
    assert plan.simulation is not None
    with np.load(resolve(plan.simulation.files[0], find_plan(PLAN).parent)) as real:
        rows = rng.permutation(np.resize(np.arange(len(real["train_images"])), examples))
        images = real["train_images"][rows].astype(np.int16) + rng.integers(
            -3, 4, (examples, 28, 28), np.int16
        )
        np.savez(
            path,
            train_images=images.clip(0, 255).astype(np.uint8),
            train_labels=real["train_labels"][rows],
            test_images=real["test_images"],
            test_labels=real["test_labels"],
        )


def run(row: dict[str, Any], data: str) -> dict[str, float]:
    """One row in this process: seconds of the hand-out and of a round, processor seconds, peak
    memory in MiB.
    """
    from fedgraft.simulations.engines.engine import EngineOptions, nodes_on_disk, simulate

    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"adapter={ADAPTERS[row.get('adapter', 'head')]}",
            (
                f"simulation={{nodes: {row['nodes']}, data: {data}, partition: {{kind: iid,"
                " min_examples: 1}}"
            ),
            f"train.rounds={row['rounds']}",
        ]
        words += [f"backbone={row['backbone']}"] if "backbone" in row else []
        plan = load_plan(PLAN, words)
        with nodes_on_disk(plan, find_plan(PLAN)) as nodes:
            before = resource.getrusage(resource.RUSAGE_SELF)
            run = simulate(
                plan,
                find_plan(PLAN),
                Path(folder) / "run",
                nodes=nodes,
                options=EngineOptions(together=row.get("together", False)),
            )
            after = resource.getrusage(resource.RUSAGE_SELF)
    result = run.to_json()
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "total": result["seconds"]["total"],
        "handout": result["seconds"]["handout"],
        "rounds": result["seconds"]["rounds"],
        "processor": processor,
        "mib": after.ru_maxrss / 1024,
        "accuracy": result["final"]["global"]["accuracy"],
    }


def main(kind: str) -> None:
    """A table in Markdown, a line for each row as it is done."""
    print(f"{os.cpu_count()} cores, one torch thread for each of two workers")
    print(
        "| row | wall, s | hand-out, s | rounds, s | processor, s | per node and round, ms | peak"
        " memory, MiB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in ROWS[kind]:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data.npz"
            write_data(data, row["examples"])  # here, so that the row's peak of memory is its own
            words = [
                sys.executable,
                "-m",
                "fedgraft.simulations.benchmarks.cost",
                "--row",
                json.dumps(row),
                str(data),
            ]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {row} | failed: {done.stderr.strip().splitlines()[-1][:200]} |", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        name = ", ".join(f"{key} {value}" for key, value in row.items())
        each = 1000 * found["rounds"] / row["nodes"] / row["rounds"]
        numbers = [*(found[key] for key in ("total", "handout", "rounds", "processor")), each]
        print(
            f"| {name} | " + " | ".join(f"{v:.1f}" for v in numbers) + f" | {found['mib']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--row"]:
        print(json.dumps(run(json.loads(sys.argv[2]), sys.argv[3])))
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "nodes")
