"""Heart disease at four hospitals, beside the figures that FLamby reports for the same data.

    .venv/bin/python -m fedgraft.simulations.benchmarks.heart_disease
        both tables
    .venv/bin/python -m fedgraft.simulations.benchmarks.heart_disease --private
        the second: under differential privacy

FLamby (Ogier du Terrail et al. 2022) keeps 740 rows that are complete enough, splits them by
hospital into its own train and test sets, standardises each hospital by itself, trains a linear
model from scratch, and reports the mean over hospitals. Here all 920 rows take part, missing values
and all; each hospital keeps a fifth of its rows for testing (chosen by content); the mean is over
hospitals, too, and over three seeds.

Under differential privacy the usual figures come from an accountant that is made anew for each
message: it counts one round and forgets it. The second table has both: that ε, and the ε of
everything that was run.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedgraft.common.privacy.accounting import bound
from fedgraft.simulations.benchmarks.over_seeds import Results, list_epsilons, run_over_seeds
from fedgraft.simulations.benchmarks.result_files import ResultTable, record
from fedgraft.simulations.readable import show_spread

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
FILES = ", ".join(f"../shared/data/heart_disease/{name}.csv" for name in HOSPITALS)
ALL_FOUR = f"simulation.data=[{FILES}]"
FROM_SCRATCH = (ALL_FOUR, "adapter.method=full", "backbone.random=true")
FEDADAM = ("aggregate.strategy=fedadam", "aggregate.server_lr=0.01")
LARGE_STEPS = (
    "train.rounds=10",
    "train.local_epochs=1",
    "train.batch_size=64",
    "train.optimizer.lr=0.01",
)
PRIVATE = ("privacy.mode=sample", "privacy.delta=1.0e-4")
EPSILONS = (1.0, 3.0, 8.0, None)
SEEDS = 3


class Row(NamedTuple):
    """A row beside FLamby's figure; `pooled`: all data in one place."""

    title: str
    flamby: str
    overrides: tuple[str, ...] = ()
    pooled: bool = False


ROWS = (
    Row("FedAvg, everything trained, from scratch, four hospitals", "0.685", FROM_SCRATCH),
    Row(
        "FedAdam, everything trained, from scratch, four hospitals",
        "0.726",
        (*FROM_SCRATCH, *FEDADAM),
    ),
    Row("pooled, from scratch, four hospitals", "0.735", FROM_SCRATCH, pooled=True),
    Row("**LoRA on Cleveland's backbone, four hospitals**", "–", (ALL_FOUR,)),
    Row("**LoRA on Cleveland's backbone, the other three** (plan `heart`)", "–"),
)
PRIVATE_ROWS: Mapping[str, tuple[str, ...]] = {
    "everything trained, from scratch, four hospitals": FROM_SCRATCH,
    "biases on Cleveland's backbone, the other three": ("adapter.method=bias",),
}
PRIVATE_HEAD = (
    "accuracy, mean over hospitals (δ = 1e-4, example)",
    "ε, all rounds",
    "ε, one round's accountant",
    "accuracy",
)


def main() -> None:
    """Run each row over three seeds, print the tables in Markdown and record them."""
    if "--private" not in sys.argv[1:]:
        measure_beside_flamby()
    measure_private()


# ── beside FLamby ─────────────────────────────────────────────────────────────────────────────────
def measure_beside_flamby() -> None:
    """Print and record the first table."""
    table = ResultTable(("accuracy, mean over hospitals", "FLamby", "fedgraft"))
    table.print_head()
    with tempfile.TemporaryDirectory() as folder:
        for number, row in enumerate(ROWS):
            baselines = "pooled" if row.pooled else ""
            out = Path(folder) / str(number)
            results = run_over_seeds("heart", row.overrides, out, seeds=SEEDS, baselines=baselines)
            table.add(row.title, row.flamby, show_spread(_mean_accuracies(results, row.pooled)))
            table.print_last()
    record("heart", "flamby", table)


def _mean_accuracies(results: Results, pooled: bool = False) -> list[float]:
    """Return the mean over hospitals of each seed."""
    means = []
    for result in results:
        measured = result["baselines"]["pooled"] if pooled else result["final"]
        accuracies = [node["accuracy"] for node in measured["nodes"].values()]
        means.append(float(np.mean(accuracies)))
    return means


# ── under differential privacy ────────────────────────────────────────────────────────────────────
def measure_private() -> None:
    """Print and record the second table."""
    table = ResultTable(PRIVATE_HEAD)
    print()
    table.print_head()
    with tempfile.TemporaryDirectory() as folder:
        for number, (title, overrides) in enumerate(PRIVATE_ROWS.items()):
            for target in EPSILONS:
                settings = [*overrides, *LARGE_STEPS, *_privacy_of(target)]
                out = Path(folder) / f"{number}-{target}"
                results = run_over_seeds("heart", settings, out, seeds=SEEDS)
                table.add(title, *_show_epsilons(results), show_spread(_mean_accuracies(results)))
                table.print_last()
    record("heart", "private", table, packages=("torch", "opacus"))


def _privacy_of(target: float | None) -> tuple[str, ...]:
    if target is None:
        return ()
    return (*PRIVATE, f"privacy.target_epsilon={target:g}")


def _show_epsilons(results: Results) -> list[str]:
    """Return the largest ε of everything that was run, and of one round alone."""
    counted = list_epsilons(results)
    if not counted:
        return ["∞", "∞"]
    single = []
    for result in results:
        for spent in result["privacy"].values():
            single.append(_epsilon_of_one_round(spent, result["rounds_done"]))
    return [f"{max(counted):.2f}", f"{max(single):.2f}"]


def _epsilon_of_one_round(spent: Mapping[str, Any], rounds: int) -> float:
    ((sigma, rate, steps),) = spent["history"]
    one_round = (sigma, rate, steps // rounds)
    return bound([one_round], spent["delta"], spent["accountant"]).epsilon


if __name__ == "__main__":
    main()
