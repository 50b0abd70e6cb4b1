"""Deaths in intensive care: an encoder that one unit trained beforehand, beside one round without.

    python -m fedgraft.simulations.benchmarks.icu_encoder

A network for tables is trained on the coronary-care unit, which is then no node; the three other
units adapt it. Beside it: one round over the columns of the same three units, which needs nobody
beforehand, and logistic regression on their pooled records. All are measured on the same tests, a
fifth of each unit's records, over three seeds. No setting was chosen on them: the network's sizes
and steps are those of the plan `heart`, with larger batches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedgraft.client.data.data_set import DataSource, open_records
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.simulations.benchmarks.over_seeds import Results, run_over_seeds
from fedgraft.simulations.benchmarks.result_files import ResultTable, record
from fedgraft.simulations.pretraining import pretrain
from fedgraft.simulations.readable import show_spread

PLAN = "icu-one-round"
SEEDS = (7, 8, 9)
FOLDER = "../shared/data/icu"
UNITS = ", ".join(f"{FOLDER}/{name}.csv.gz" for name in ("cardiac-surgery", "medical", "surgical"))
THREE = (f"simulation.data=[{UNITS}]",)
STEPS = (
    "train={rounds: 20, local_epochs: 2, batch_size: 64, optimizer: {name: adamw, lr: 2e-3}}",
    "task.ranges=[]",
)
PRETRAIN = (
    f"pretrain={{data: {FOLDER}/coronary-care.csv.gz, labels: [0, 1], epochs: 40, batch_size: 64,"
    " optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.01}}"
)
ADAPTED = {
    "encoder of coronary care, LoRA": "adapter={method: lora, rank: 4}",
    "encoder of coronary care, bottlenecks": "adapter={method: bottleneck}",
    "encoder of coronary care, head": "adapter={method: head}",
    "the same network from scratch, everything trained": "adapter={method: full}",
}
HEAD = ("model", "accuracy", "AUROC")


def main() -> None:
    """Print the table and record it."""
    table = ResultTable(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        results = run_over_seeds(PLAN, THREE, base / "one", seeds=len(SEEDS))
        table.add("**one round over the columns of three units**", *_show(results))
        encoder = f"backbone={{name: mlp, hidden: [64, 64], weights: {base}/icu.safetensors}}"
        prepared = (*THREE, *STEPS, encoder, PRETRAIN)
        path = find_plan(PLAN)
        pretrain(load_plan(PLAN, prepared), path)
        for number, (title, adapter) in enumerate(ADAPTED.items()):
            changes = [*prepared, adapter]
            if "full" in adapter:
                changes.append("backbone.random=true")
            results = run_over_seeds(PLAN, changes, base / f"{number}", seeds=len(SEEDS))
            table.add(title, *_show(results))
    table.add("logistic regression, pooled", *_show_logistic())
    print(table.to_markdown())
    record("one-round", "icu-encoder", table, packages=("torch", "scikit-learn"))


def _show(results: Results) -> list[str]:
    """Return accuracy and AUROC on all units' tests, mean and spread over seeds."""
    cells = []
    for metric in ("accuracy", "auroc"):
        cells.append(show_spread([result["final"]["global"][metric] for result in results]))
    return cells


def _show_logistic() -> list[str]:
    """Return accuracy and AUROC of logistic regression on the pooled training records: medians for
    what is missing and a mark for it, standardised; its penalty by folds of the training records.
    """
    figures = [_measure_logistic(seed) for seed in SEEDS]
    return [show_spread(column) for column in zip(*figures, strict=True)]


def _measure_logistic(seed: int) -> Sequence[float]:
    plan = load_plan(PLAN, [*THREE, f"seed={seed}"])
    assert plan.simulation is not None
    rows: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    labels: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for file in plan.simulation.files:
        data = DataSource(str(resolve(file, find_plan(PLAN).parent)))
        records = open_records(data, plan.task)
        for split in rows:
            own = records.splits[split]
            rows[split].append(records.read(own).numpy())
            labels[split].append(records.labels[own])
    imputer = SimpleImputer(strategy="median", add_indicator=True)
    fit = LogisticRegressionCV(Cs=4, cv=3, scoring="roc_auc", max_iter=1000)
    model = make_pipeline(imputer, StandardScaler(), fit)
    model.fit(np.concatenate(rows["train"]), np.concatenate(labels["train"]))
    truth = np.concatenate(labels["test"])
    scores = model.predict_proba(np.concatenate(rows["test"]))[:, 1]
    return float(accuracy_score(truth, scores > 0.5)), float(roc_auc_score(truth, scores))


if __name__ == "__main__":
    main()
