"""Heart disease at four hospitals, beside the figures that FLamby reports for the same data.

    .venv/bin/python -m simulations.benchmarks.heart

FLamby (Ogier du Terrail et al. 2022) keeps 740 rows that are complete enough, splits them by hospital into its own
train and test sets, standardises each hospital by itself, trains a linear model from scratch, and reports the mean
over hospitals. Here all 920 rows take part, missing values and all; each hospital keeps a fifth of its rows for testing
(chosen by content); the mean is over hospitals, too, and over three seeds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from simulations.simulate import simulate_plan

FOUR = [f"../shared/data/heart_disease/{name}.csv" for name in ("cleveland", "hungarian", "switzerland", "va")]
FROM_SCRATCH = (f"simulation.data=[{', '.join(FOUR)}]", "adapter.method=full", "backbone.random=true")
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


def main() -> None:
    """Run each row over three seeds and print a table in Markdown."""
    print("| accuracy, mean over hospitals | FLamby | fedgraft |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, flamby, overrides) in enumerate(ROWS):
            pooled = name.startswith("pooled")
            ran = simulate_plan(
                "heart",
                overrides=list(overrides),
                out=Path(folder) / str(number),
                seeds=SEEDS,
                baselines="pooled" if pooled else "",
                quiet=True,
            )
            ours = []
            for result in ran["seeds"]:
                nodes = result["baselines"]["pooled"]["nodes"] if pooled else result["final"]["nodes"]
                ours.append(float(np.mean([node["accuracy"] for node in nodes.values()])))
            print(f"| {name} | {flamby} | {np.mean(ours):.3f} ± {np.std(ours, ddof=1):.3f} |", flush=True)


if __name__ == "__main__":
    main()
