"""The ready plans over three seeds with their baselines: the tables of `fedgraft simulate`.

.venv/bin/python -m fedgraft.simulations.benchmarks.ready_plans                 # all of them
.venv/bin/python -m fedgraft.simulations.benchmarks.ready_plans digits
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.simulations.benchmarks.over_seeds import run_over_seeds
from fedgraft.simulations.benchmarks.result_files import ResultTable, record
from fedgraft.simulations.pretraining import pretrain
from fedgraft.simulations.results_in_words import describe_results
from fedgraft.simulations.results_table import list_columns, list_models, show_cells

SEEDS = 3
# where a run takes minutes
ONE_SEED = 1
# on the last block, between the head that sums give and one that sums over adapted features give
ADAPTERS = (
    "adapter.method=lora",
    "adapter.targets=last-block",
    "train.method=steps",
    "train.start=closed-form",
    "train.finish=closed-form",
    "train.rounds=6",
    "train.optimizer.lr=5e-4",
)


class Measured(NamedTuple):
    """A ready plan that is measured: in which file of results, beside which baselines, with what
    changed.
    """

    file: str
    baselines: str
    plan: str = ""
    changes: tuple[str, ...] = ()
    seeds: int = SEEDS


PLANS = {
    "digits": Measured("digits", "alone,head,random-backbone"),
    "pneumonia": Measured("medical", "alone,head"),
    "heart": Measured("heart", "all"),
    "pneumonia-one-round": Measured("one-round", "none"),
    "icu-rare": Measured("icu", "alone"),
    "icu-coma": Measured("icu", "alone"),
    "ultrasound": Measured("families", "alone,random-backbone"),
    "nuclei": Measured("families", "alone,random-backbone"),
    "generate": Measured("generate", "alone,random-backbone", seeds=ONE_SEED),
    "ultrasound-adapters": Measured("families", "none", "ultrasound", ADAPTERS),
}


def main() -> None:
    """Run each plan that is named, or all; print its table in Markdown and record it."""
    for plan in sys.argv[1:] or PLANS:
        measure(plan)


def measure(name: str) -> None:
    """Run one plan over the seeds, print its table and record it."""
    measured = PLANS[name]
    ready = measured.plan or name
    plan = load_plan(ready)
    if plan.pretrain is not None:
        pretrain(plan, find_plan(ready))
    with tempfile.TemporaryDirectory() as folder:
        results = run_over_seeds(
            ready,
            measured.changes,
            Path(folder) / name,
            seeds=measured.seeds,
            baselines=measured.baselines,
        )
    measures = list_columns(results)
    table = ResultTable(("model", *(measure.words for measure in measures), "sent"))
    for model in list_models(results):
        table.add(model.name, *show_cells(model, measures))
    print(table.to_markdown(), flush=True)
    command = f"fedgraft simulate {ready} --seeds {measured.seeds} --baselines {measured.baselines}"
    for change in measured.changes:
        command += f" --set {change}"
    record(measured.file, name, table, notes=describe_results(results), command=command)


if __name__ == "__main__":
    main()
