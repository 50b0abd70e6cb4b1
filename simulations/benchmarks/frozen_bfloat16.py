"""Ready plans with their frozen part in float32 and in bfloat16: the same accuracy?

    python -m fedgraft.simulations.benchmarks.frozen_bfloat16 [--seeds 5]

Each plan is run twice over the same seeds, with the same deals and first values; nothing is chosen
by what comes out. How long a pass takes: `fedgraft.simulations.benchmarks.cards`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedgraft.common.model.instructions import name_instructions
from fedgraft.simulations.benchmarks.over_seeds import Results, run_over_seeds, show_metric
from fedgraft.simulations.benchmarks.result_files import ResultTable, record

LAST_BLOCK = (
    "adapter.method=lora",
    "adapter.targets=last-block",
    "simulation.nodes=8",
    "train.rounds=10",
)
# words, ready plan, what is changed
PLANS: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("X-rays, one round", "pneumonia-one-round", ()),
    (
        "X-rays, one round, ε = 3",
        "pneumonia-one-round",
        ("privacy.mode=sample", "privacy.target_epsilon=3", "privacy.delta=1e-5"),
    ),
    ("X-rays, LoRA in the last block", "pneumonia", LAST_BLOCK),
    ("X-rays, head by steps", "pneumonia", ("adapter.method=head", "train.rounds=10")),
    ("ultrasound, one round", "ultrasound", ()),
)
HEAD = ("plan", "float32", "bfloat16", "difference", "AUROC", "AUROC, bfloat16")


def main() -> None:
    """Run the plans, print the table and record it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    table = ResultTable(HEAD)
    table.print_head()
    for words, plan, changes in PLANS:
        with tempfile.TemporaryDirectory() as folder:
            runs: dict[str, Results] = {}
            for precision in ("float32", "bfloat16"):
                overrides = [*changes, f"backbone.precision={precision}"]
                out = Path(folder) / precision
                runs[precision] = run_over_seeds(
                    plan, overrides, out, seeds=options.seeds, baselines="none"
                )
        table.add(words, *compare(runs["float32"], runs["bfloat16"]))
        table.print_last()
    notes = [
        f"{options.seeds} seeds, {name_instructions()} instructions",
        "difference: of accuracy, in points, mean and largest over seeds",
    ]
    record("bfloat16", "accuracy", table, notes=notes)


def compare(exact: Results, rounded: Results) -> list[str]:
    """Return the cells of a plan's row after its name."""
    points: list[float] = []
    for one, other in zip(exact, rounded, strict=True):
        moved = other["final"]["global"]["accuracy"] - one["final"]["global"]["accuracy"]
        points.append(100 * moved)
    largest = max(points, key=abs)
    return [
        show_metric(exact, "accuracy"),
        show_metric(rounded, "accuracy"),
        f"{np.mean(points):+.2f}, {largest:+.2f}",
        show_metric(exact, "auroc"),
        show_metric(rounded, "auroc"),
    ]


if __name__ == "__main__":
    main()
