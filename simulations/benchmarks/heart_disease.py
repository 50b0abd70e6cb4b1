"""Heart disease at four hospitals, beside the figures that FLamby reports for the same data.

    .venv/bin/python -m fedgraft.simulations.benchmarks.heart_disease            # both tables
    .venv/bin/python -m fedgraft.simulations.benchmarks.heart_disease --private  # the second: under
    differential privacy

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
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedgraft.common.privacy.accounting import bound
from fedgraft.simulations.simulate import SimulationOptions, simulate_plan

FOUR = [
    f"../shared/data/heart_disease/{name}.csv"
    for name in ("cleveland", "hungarian", "switzerland", "va")
]
FROM_SCRATCH = (
    f"simulation.data=[{', '.join(FOUR)}]",
    "adapter.method=full",
    "backbone.random=true",
)
SEEDS = 3
ROWS: list[tuple[str, str, tuple[str, ...]]] = [
    ("FedAvg, everything trained, from scratch, four hospitals", "0.685", FROM_SCRATCH),
    (
        "FedAdam, everything trained, from scratch, four hospitals",
        "0.726",
        (*FROM_SCRATCH, "aggregate.strategy=fedadam", "aggregate.server_lr=0.01"),
    ),
    ("pooled, from scratch, four hospitals", "0.735", FROM_SCRATCH),
    ("**LoRA on Cleveland's backbone, four hospitals**", "–", FROM_SCRATCH[:1]),
    ("**LoRA on Cleveland's backbone, the other three** (plan `heart`)", "–", ()),
]
LARGE_STEPS = (
    "train.rounds=10",
    "train.local_epochs=1",
    "train.batch_size=64",
    "train.optimizer.lr=0.01",
)
PRIVATE = ("privacy.mode=sample", "privacy.delta=1.0e-4")
PRIVATE_ROWS: list[tuple[str, tuple[str, ...]]] = [
    ("everything trained, from scratch, four hospitals", FROM_SCRATCH),
    ("biases on Cleveland's backbone, the other three", ("adapter.method=bias",)),
]

QUIET = SimulationOptions(quiet=True)


def main() -> None:
    """Run each row over three seeds and print the tables in Markdown."""
    if "--private" not in sys.argv[1:]:
        _beside_flamby()
    _private()


def _private() -> None:
    head = (
        "| accuracy, mean over hospitals (δ = 1e-4, example) | ε, all rounds | ε, one round's"
        " accountant | accuracy |"
    )
    print(f"\n{head}\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, overrides) in enumerate(PRIVATE_ROWS):
            for target in (1.0, 3.0, 8.0, None):
                private = () if target is None else (*PRIVATE, f"privacy.target_epsilon={target:g}")
                ran = simulate_plan(
                    "heart",
                    overrides=[*overrides, *LARGE_STEPS, *private],
                    out=Path(folder) / f"{number}-{target}",
                    seeds=SEEDS,
                    options=QUIET,
                )
                whole, single, ours = [], [], []
                for result in ran["seeds"]:
                    for spent in result["privacy"].values():
                        ((sigma, rate, steps),) = spent["history"]
                        whole.append(spent["epsilon"])
                        once = (sigma, rate, steps // result["rounds_done"])
                        single.append(bound([once], spent["delta"], spent["accountant"]).epsilon)
                    ours.append(
                        float(
                            np.mean(
                                [node["accuracy"] for node in result["final"]["nodes"].values()]
                            )
                        )
                    )
                spread = f"{np.mean(ours):.3f} ± {np.std(ours, ddof=1):.3f}"
                counted = f"{max(whole):.2f} | {max(single):.2f}" if whole else "∞ | ∞"
                print(f"| {name} | {counted} | {spread} |", flush=True)


def _beside_flamby() -> None:
    print("| accuracy, mean over hospitals | FLamby | fedgraft |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, flamby, overrides) in enumerate(ROWS):
            pooled = name.startswith("pooled")
            ran = simulate_plan(
                "heart",
                overrides=list(overrides),
                out=Path(folder) / str(number),
                seeds=SEEDS,
                options=replace(QUIET, baselines=("pooled",) if pooled else ()),
            )
            ours = []
            for result in ran["seeds"]:
                nodes = (
                    result["baselines"]["pooled"]["nodes"] if pooled else result["final"]["nodes"]
                )
                ours.append(float(np.mean([node["accuracy"] for node in nodes.values()])))
            print(
                f"| {name} | {flamby} | {np.mean(ours):.3f} ± {np.std(ours, ddof=1):.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
