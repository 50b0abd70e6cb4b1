"""NVIDIA FLARE's simulator on the workload: its FedAvg recipe, the same adapters, ten clients.

    build/bench/nvflare/bin/python -m fedgraft.simulations.benchmarks.with_nvflare ADAPTER SEED
    SHARDS

The simulator's own defaults: a process for each client. `nvflare_client.py` is what runs in them.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

from fedgraft.simulations.benchmarks.workload import (
    NODES,
    ROUNDS,
    accuracy,
    load_shards,
    new_model,
    report,
)


def run(adapter: str, seed: int, shards: Path) -> None:
    """Simulate and report."""
    model = new_model(adapter, seed)
    with tempfile.TemporaryDirectory(prefix="nvflare-") as folder:
        initial = Path(folder) / "initial.pt"
        torch.save(model.adapter_state(), initial)
        recipe = FedAvgRecipe(
            name="workload",
            model={
                "class_path": "fedgraft.simulations.benchmarks.nvflare_client.Trained",
                "args": {"adapter": adapter, "seed": seed},
            },
            initial_ckpt=str(initial),
            min_clients=NODES,
            num_rounds=ROUNDS,
            train_script=str(Path(__file__).with_name("nvflare_client.py")),
            train_args=f"{adapter} {seed} {shards}",
        )
        started = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            recipe.execute(SimEnv(num_clients=NODES, workspace_root=folder))
        seconds = time.perf_counter() - started
        saved = sorted(Path(folder).rglob("FL_global_model.pt"))[-1]
        state = torch.load(saved, weights_only=False)
        model.load_adapter_state(
            {name: torch.as_tensor(value) for name, value in state["model"].items()}
        )
    report(
        accuracy=accuracy(model, load_shards(shards)),
        seconds=seconds,
        versions={"nvflare": version("nvflare"), "torch": torch.__version__},
    )


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve())
