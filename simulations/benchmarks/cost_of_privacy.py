"""What sample-level privacy costs on `pneumonia`: accuracy and AUROC at ε ∈ {1, 3, 8, ∞}, over
three seeds.

    .venv/bin/python -m fedgraft.simulations.benchmarks.cost_of_privacy

Twelve federations. What a private step takes beside a plain one:
`fedgraft.simulations.benchmarks.steps`.

Added biases, since noise grows with the number of values and they are the fewest; in the last block
only, since what lies before it is then computed once; a larger batch and learning rate than without
noise; ten rounds. Each node's noise is calibrated to its own data, so every node's ε is the target.
The same settings without privacy give the row ∞; the ready plan's own (LoRA everywhere) are better
without noise.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from fedgraft.simulations.benchmarks.over_seeds import (
    list_epsilons,
    run_over_seeds,
    show_metric,
)
from fedgraft.simulations.benchmarks.result_files import ResultTable, record

SETTINGS = (
    "adapter.method=bias",
    "adapter.targets=last-block",
    "train.batch_size=128",
    "train.rounds=10",
    "train.optimizer.lr=0.03",
    "train.schedule=cosine",
)
EPSILONS = (1.0, 3.0, 8.0)
SEEDS = 3
HEAD = (
    "ε of every node (δ = 1e-5, example, PRV)",
    "accuracy",
    "AUROC",
    "loss",
    "largest ε counted",
)


def main() -> None:
    """Run each ε over the seeds, print a table in Markdown and record it."""
    table = ResultTable(HEAD)
    table.print_head()
    with tempfile.TemporaryDirectory() as folder:
        for target in (*EPSILONS, None):
            table.add(*measure(target, Path(folder) / f"{target}"))
            table.print_last()
    record("privacy", "accuracy", table, packages=("torch", "opacus"))


def measure(target: float | None, out: Path) -> list[str]:
    """Return the row of one ε; None: without privacy."""
    settings = [*SETTINGS]
    if target is not None:
        settings += ["privacy.mode=sample", f"privacy.target_epsilon={target:g}"]
    results = run_over_seeds("pneumonia", settings, out, seeds=SEEDS)
    epsilons = list_epsilons(results)
    return [
        "∞" if target is None else f"{target:g}",
        show_metric(results, "accuracy"),
        show_metric(results, "auroc"),
        show_metric(results, "loss"),
        f"{max(epsilons):.4f}" if epsilons else "–",
    ]


if __name__ == "__main__":
    main()
