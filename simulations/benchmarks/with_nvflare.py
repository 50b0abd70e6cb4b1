"""NVIDIA FLARE's simulator on the workload: its FedAvg recipe, the same adapters, ten clients.

    build/bench/nvflare/bin/python -m fedgraft.simulations.benchmarks.with_nvflare \\
        ADAPTER SEED SHARDS

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
from torch import Tensor

from fedgraft.simulations.benchmarks.workload import (
    NODES,
    ROUNDS,
    accuracy,
    load_shards,
    new_model,
    report,
)

TRAINED = "fedgraft.simulations.benchmarks.nvflare_client.Trained"
CLIENT = Path(__file__).with_name("nvflare_client.py")


def run(adapter: str, seed: int, shards: Path) -> None:
    """Simulate and report."""
    model = new_model(adapter, seed)
    with tempfile.TemporaryDirectory(prefix="nvflare-") as name:
        folder = Path(name)
        initial = folder / "initial.pt"
        torch.save(model.adapter_state(), initial)
        recipe = FedAvgRecipe(
            name="workload",
            model={"class_path": TRAINED, "args": {"adapter": adapter, "seed": seed}},
            initial_ckpt=str(initial),
            min_clients=NODES,
            num_rounds=ROUNDS,
            train_script=str(CLIENT),
            train_args=f"{adapter} {seed} {shards}",
        )
        started = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            recipe.execute(SimEnv(num_clients=NODES, workspace_root=name))
        seconds = time.perf_counter() - started
        model.load_adapter_state(_read_last_model(folder))
    report(
        accuracy=accuracy(model, load_shards(shards)),
        seconds=seconds,
        versions={"nvflare": version("nvflare"), "torch": torch.__version__},
    )


def _read_last_model(folder: Path) -> dict[str, Tensor]:
    *_, last = sorted(folder.rglob("FL_global_model.pt"))
    values = torch.load(last, weights_only=False)["model"]
    return {name: torch.as_tensor(value) for name, value in values.items()}


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve())
