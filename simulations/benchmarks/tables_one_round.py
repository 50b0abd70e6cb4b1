"""Tables in one round of histograms and one of sums, cross-validated, beside pooled models.

    python -m fedgraft.simulations.benchmarks.tables_one_round [--plans heart,icu]

Sums and histograms of hospitals add up to those of their pooled records to the bit, so a fold is
solved from the pooled sums by the code of node and server. Folds are stratified by hospital and
class. Nothing is chosen on test records: the ridge constant is by the evidence of the training
sums, and what the pooled models are tuned by, by folds of the training records.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedgraft.client.data.data_set import DataSource, open_records
from fedgraft.client.data.examples import Examples
from fedgraft.client.data.split import Split
from fedgraft.client.histogram_round import count_split
from fedgraft.client.node_task import NodeTask, working_model
from fedgraft.client.sum_round import sum_split
from fedgraft.common.backbones import family_of
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.model.solve_head import solve_head
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.simulations.baselines import Pool

# plan, draws of the folds
PLANS = {"heart-one-round": 5, "icu-one-round": 1}
FOLDS = 3
SEPARATOR = "/"
# rows (n, inputs), classes (n,), rows (m, inputs) → the probability of the second class, (m,)
Model = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Hospitals:
    """The records of all hospitals of a plan.

    Attributes:
        splits: all records of each, in the order of the plan.
        strata: hospital and class of each record.
    """

    plan: Plan
    backbone: Backbone
    splits: list[Split]
    strata: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Return the classes of all records `(n,)`."""
        return Pool(self.splits).labels.numpy()

    def choose(self, rows: np.ndarray) -> Examples:
        """Return some of the records, counted through all hospitals, each at its own."""
        parts = []
        begin = 0
        for split in self.splits:
            end = begin + len(split)
            own = np.sort(rows[(rows >= begin) & (rows < end)]) - begin
            parts.append(Split(split.records, split.rows[own], split.preparation))
            begin = end
        return Pool(parts)


def open_hospitals(name: str) -> Hospitals:
    """Return the records of a ready plan's hospitals, training, validation and test together."""
    plan = load_plan(name)
    path = find_plan(name)
    backbone = plan_backbone(plan, path.parent)
    assert plan.simulation is not None
    splits = []
    strata = []
    for file in plan.simulation.files:
        records = open_records(DataSource(str(resolve(file, path.parent))), plan.task)
        rows = np.sort(np.concatenate([*records.splits.values()]))
        split = Split(records, rows, backbone.preprocess)
        splits.append(split)
        strata += [f"{file}{SEPARATOR}{label}" for label in split.labels.tolist()]
    return Hospitals(plan, backbone, splits, np.array(strata))


# ── models ────────────────────────────────────────────────────────────────────────────────────────
def one_round(hospitals: Hospitals, train: Examples, test: Examples) -> np.ndarray:
    """Return the probability of the second class for test records `(m,)`, as a federation's."""
    plan = hospitals.plan
    model = working_model(hospitals.backbone, plan)
    learnt = family_of(plan.backbone.name).learnt
    assert learnt is not None
    state = model.adapter_state()
    histograms = count_split(train, plan)
    state |= learnt.learn(histograms, plan.train.closed_form.hinges)
    model.load_adapter_state(state)
    task = NodeTask("pooled", plan, model, train, test, model.frozen_fingerprint())
    state |= solve_head(sum_split(task), plan, model.head_name).tensors
    model.load_adapter_state(state)
    with torch.inference_mode():
        outputs = model(test.inputs(torch.arange(len(test))))
    return torch.softmax(outputs, dim=1)[:, 1].numpy()


def logistic(rows: np.ndarray, labels: np.ndarray, tests: np.ndarray) -> np.ndarray:
    """Return what logistic regression says over values, means where missing, and marks."""
    fill = SimpleImputer(add_indicator=True, keep_empty_features=True)
    model = make_pipeline(fill, StandardScaler(), LogisticRegression(max_iter=2000))
    return tune(model, {"logisticregression__C": [0.003, 0.03, 0.3]}, rows, labels, tests)


def boosting(rows: np.ndarray, labels: np.ndarray, tests: np.ndarray) -> np.ndarray:
    """Return what gradient boosting says, which takes missing values as they are."""
    model = HistGradientBoostingClassifier(learning_rate=0.05, random_state=0)
    choices = {"max_leaf_nodes": [4, 8, 31], "max_iter": [100, 200]}
    return tune(model, choices, rows, labels, tests)


def tune(
    model: Any,
    choices: dict[str, list[Any]],
    rows: np.ndarray,
    labels: np.ndarray,
    tests: np.ndarray,
) -> np.ndarray:
    """Return the probability of the second class `(m,)` by a model whose constants have the least
    loss in folds of its training records.
    """
    search = GridSearchCV(model, choices, cv=FOLDS, scoring="neg_log_loss")
    return search.fit(rows, labels).predict_proba(tests)[:, 1]


POOLED: dict[str, Model] = {"logistic regression, pooled": logistic, "boosting, pooled": boosting}


# ── folds ─────────────────────────────────────────────────────────────────────────────────────────
def measure(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Return accuracy, AUROC and AUPRC."""
    accuracy = float(((scores > 0.5) == labels).mean())
    auroc = float(roc_auc_score(labels, scores))
    return accuracy, auroc, float(average_precision_score(labels, scores))


def cross_validate(hospitals: Hospitals, draws: int) -> dict[str, np.ndarray]:
    """Return accuracy, AUROC and AUPRC of each model, a row for each fold."""
    labels = hospitals.labels
    results: dict[str, list[tuple[float, float, float]]] = {}
    for draw in range(draws):
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=draw)
        for train_rows, test_rows in folds.split(labels, hospitals.strata):
            train = hospitals.choose(train_rows)
            test = hospitals.choose(test_rows)
            answers = test.labels.numpy()
            scores = one_round(hospitals, train, test)
            results.setdefault("histograms and sums", []).append(measure(scores, answers))
            rows = read_all(train)
            tests = read_all(test)
            for name, model in POOLED.items():
                scores = model(rows, train.labels.numpy(), tests)
                results.setdefault(name, []).append(measure(scores, answers))
    return {name: np.array(values) for name, values in results.items()}


def read_all(examples: Examples) -> np.ndarray:
    """Return the inputs of all examples, `(n, inputs)`, NaN where missing."""
    return examples.inputs(torch.arange(len(examples))).only.numpy()


def main() -> None:
    """Print a table for each plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", default=",".join(PLANS))
    names = parser.parse_args().plans.split(",")
    torch.set_num_threads(1)
    for name in names:
        plan = name if name in PLANS else f"{name}-one-round"
        draws = PLANS[plan]
        hospitals = open_hospitals(plan)
        print(f"{plan}, {len(hospitals.labels)} records, {draws} × {FOLDS}-fold")
        for model, values in cross_validate(hospitals, draws).items():
            accuracy, auroc, auprc = values.mean(0)
            row = f"accuracy {accuracy:.3f}  AUROC {auroc:.3f}  AUPRC {auprc:.3f}"
            print(f"  {model:28} {row}  (AUROC of folds ± {values[:, 1].std():.3f})")


if __name__ == "__main__":
    main()
