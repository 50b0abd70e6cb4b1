"""Three ways to combine LoRA, with and without noise, on `pneumonia`: averaging A and B apart is
not averaging B·A.

    .venv/bin/python -m fedgraft.simulations.benchmarks.lora_aggregation

average     A and B are averaged apart (FedAvg on the factors)
freeze-a    A stays as it was drawn, B is averaged: exact, half of what travels (Sun et al. 2024)
svd         the best update of the rank for the mean of the products

Under DP-SGD both factors carry noise, and their product its square; with A frozen it stays linear.
LoRA sits on the last block, so that twelve federations take minutes and not hours.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from fedgraft.simulations.benchmarks.over_seeds import run_over_seeds, show_metric
from fedgraft.simulations.benchmarks.result_files import ResultTable, record
from fedgraft.simulations.readable import show_bytes

SETTINGS = (
    "adapter.targets=last-block",
    "adapter.rank=4",
    "adapter.alpha=8",
    "train.batch_size=64",
    "train.rounds=5",
    "train.optimizer.lr=0.01",
    "train.schedule=cosine",
)
PRIVATE = ("privacy.mode=sample", "privacy.target_epsilon=8", "privacy.delta=1.0e-4")
WAYS = ("average", "freeze-a", "svd")
SEEDS = 2
HEAD = (
    "lora_aggregation",
    "update",
    "no privacy: accuracy",
    "AUROC",
    "ε = 8, δ = 1e-4: accuracy",
    "AUROC",
)


def main() -> None:
    """Run each way over the seeds, print a table in Markdown and record it."""
    table = ResultTable(HEAD)
    table.print_head()
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            table.add(way, *measure(way, Path(folder)))
            table.print_last()
    record("lora", "ways", table, packages=("torch", "opacus"))


def measure(way: str, folder: Path) -> list[str]:
    """Return an update's size, then accuracy and AUROC without and with privacy."""
    settings = [*SETTINGS, f"aggregate.lora_aggregation={way}"]
    plain = run_over_seeds("pneumonia", settings, folder / f"{way}-plain", seeds=SEEDS)
    settings += PRIVATE
    private = run_over_seeds("pneumonia", settings, folder / f"{way}-private", seeds=SEEDS)
    return [
        show_bytes(private[0]["bytes"]["adapter"]),
        show_metric(plain, "accuracy"),
        show_metric(plain, "auroc"),
        show_metric(private, "accuracy"),
        show_metric(private, "auroc"),
    ]


if __name__ == "__main__":
    main()
