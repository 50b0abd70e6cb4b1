"""Tables in one round: without privacy, at ε = 8, 3 and 1, each hospital alone, and models that
are pooled.

    python -m fedgraft.simulations.benchmarks.tables_one_round [--plans heart,icu] [--noises 15]

Sums and histograms of hospitals add up to those of their pooled records to the bit, so a fold is
solved from the pooled sums by the code of node and server; noise is drawn as nodes draw it. Folds
are stratified by hospital and class. What is released, the weight of marks and the rule for λ under
noise were chosen within the training records of the first of three folds, so that only its test
records had no say in them, and only these are tested on. The ridge constant without noise is by the
evidence of the training sums, and what the pooled models are tuned by, by folds of the training
records. Differences are paired; their intervals are the middle 95 % over
draws of the test records with replacement, the models and their noise being what they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
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
from fedgraft.client.sum_round import list_features, sum_split
from fedgraft.common.backbones import family_of
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.model.solve_head import noisy_form_of, releases_products, solve_head
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.common.privacy.discrete_noise import draw_discrete_gaussian
from fedgraft.common.privacy.noise_search import noise_for
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.statistics.noisy_sums import NoisySums, sigma_of, sum_units
from fedgraft.simulations.baselines import Pool
from fedgraft.simulations.benchmarks.result_files import ResultTable, record

PLANS = ("heart-one-round", "icu-one-round")
FOLDS = 3
EPSILONS = (8.0, 3.0, 1.0)
DELTA = 1e-5
PRIVATE = ("privacy.mode=sample", "privacy.target_epsilon=1")
SEPARATOR = "/"
# draws of the test records with replacement
REDRAWN = 300
# models that others are compared with
LOGISTIC = "logistic regression, pooled"
BOOSTING = "boosting, pooled"
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


def open_hospitals(name: str, overrides: Sequence[str] = ()) -> Hospitals:
    """Return the records of a ready plan's hospitals, training, validation and test together."""
    plan = load_plan(name, overrides)
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
@dataclass(frozen=True)
class PrivateFeatures:
    """What noisy sums of a plan are of: features of norm 1 of all records, `(n, d)`, and how many
    hospitals add noise.
    """

    plan: Plan
    values: np.ndarray
    labels: torch.Tensor
    hospitals: int


def compute_private_features(hospitals: Hospitals) -> PrivateFeatures:
    """Return the features of all records under a private plan: no fold changes them."""
    model = working_model(hospitals.backbone, hospitals.plan)
    pool = Pool(hospitals.splits)
    parts = [features for _, features in list_features(model, pool)]
    return PrivateFeatures(
        hospitals.plan, np.concatenate(parts), pool.labels, len(hospitals.splits)
    )


def draw_private(
    features: PrivateFeatures, epsilon: float, noises: int, train: np.ndarray, test: np.ndarray
) -> Callable[[int], np.ndarray]:
    """Return a function that gives for the number of a draw of the noise the probability of the
    second class for test records `(m,)`.

    Args:
        noises: how many parties add noise.
        train, test: rows.
    """
    plan = features.plan
    form = noisy_form_of(plan)
    shares = plan.train.closed_form.shares
    products = releases_products(plan)
    labels = features.labels[torch.from_numpy(train)]
    codes = form.codes(labels, plan.task, shares)
    counted = form.counted(labels, plan.task, shares)
    values = features.values[train]
    exact = sum_units(values, codes, counted, np.ones(len(train)), products=products)
    sigma = sigma_of(noise_for(epsilon, DELTA, 1.0, 1), products=products)

    def predict(draw: int) -> np.ndarray:
        noisy: NoisySums = exact
        for number in range(noises):
            randomness = Randomness(f"tables/{draw}/{number}".encode())
            noisy = noisy.with_noise(sigma, partial(draw_discrete_gaussian, randomness=randomness))
        weights, bias = form.head(noisy, plan.task, shares, plan.train.closed_form.prior)
        logits = torch.from_numpy(features.values[test] @ weights.T + bias)
        return torch.softmax(logits, dim=1)[:, 1].numpy()

    return predict


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


POOLED: dict[str, Model] = {LOGISTIC: logistic, BOOSTING: boosting}


# ── folds ─────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Prediction:
    """One model's probabilities of the second class `(m,)` for test records of a fold."""

    model: str
    rows: np.ndarray
    scores: np.ndarray


def predict_tests(
    hospitals: Hospitals, private: PrivateFeatures, noises: int
) -> Iterator[Prediction]:
    """Yield the predictions of each model on the first fold's test records; several where noise is
    drawn, or a model is one of a kind.
    """
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    train_rows, test_rows = next(folds.split(hospitals.labels, hospitals.strata))
    for model, scores in predict_fold(hospitals, train_rows, test_rows):
        yield Prediction(model, test_rows, scores)
    for model, predict in list_private(private, train_rows, test_rows):
        for noise in range(noises):
            yield Prediction(model, test_rows, predict(noise))


def predict_fold(
    hospitals: Hospitals, train_rows: np.ndarray, test_rows: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the models without privacy and what they say of the test records."""
    train = hospitals.choose(train_rows)
    test = hospitals.choose(test_rows)
    yield "one round, no privacy", one_round(hospitals, train, test)
    rows = read_all(train)
    tests = read_all(test)
    for name, model in POOLED.items():
        yield name, model(rows, train.labels.numpy(), tests)
    begin = 0
    for split in hospitals.splits:
        end = begin + len(split)
        own = train_rows[(train_rows >= begin) & (train_rows < end)]
        begin = end
        yield "a hospital alone (mean of four)", one_round(hospitals, hospitals.choose(own), test)


def list_private(
    private: PrivateFeatures, train: np.ndarray, test: np.ndarray
) -> Iterator[tuple[str, Callable[[int], np.ndarray]]]:
    """Yield the private models, and how they predict by a draw of noise."""
    for noises, where in ((private.hospitals, "noise at each hospital"), (1, "one noise for all")):
        for epsilon in EPSILONS:
            name = f"one round, ε = {epsilon:g}, {where}"
            yield name, draw_private(private, epsilon, noises, train, test)


def read_all(examples: Examples) -> np.ndarray:
    """Return the inputs of all examples, `(n, inputs)`, NaN where missing."""
    return examples.inputs(torch.arange(len(examples))).only.numpy()


# ── figures ───────────────────────────────────────────────────────────────────────────────────────
def measure(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Return accuracy, AUROC and AUPRC."""
    accuracy = float(((scores > 0.5) == labels).mean())
    auroc = float(roc_auc_score(labels, scores))
    return accuracy, auroc, float(average_precision_score(labels, scores))


def redraw_auroc(scores: np.ndarray, labels: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the AUROC of records that are there so many times `(draws, m)`, of each draw; equal
    scores count in an order of their own.
    """
    order = np.argsort(scores, kind="stable")
    weights = times[:, order].astype(float)
    is_second = labels[order] == 1
    below = np.cumsum(weights * ~is_second, axis=1)
    pairs = (weights * is_second * below).sum(1)
    return pairs / ((weights * is_second).sum(1) * below[:, -1])


def redraw_models(predictions: Sequence[Prediction], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return each model's mean AUROC over its predictions, for each draw of the records."""
    rng = np.random.default_rng(0)
    records = len(labels)
    times = np.stack(
        [np.bincount(rng.integers(0, records, records), minlength=records) for _ in range(REDRAWN)]
    )
    values: dict[str, list[np.ndarray]] = {}
    for prediction in predictions:
        rows = prediction.rows
        aurocs = redraw_auroc(prediction.scores, labels[rows], times[:, rows])
        values.setdefault(prediction.model, []).append(aurocs)
    return {model: np.mean(aurocs, axis=0) for model, aurocs in values.items()}


def write_difference(mine: np.ndarray, other: np.ndarray) -> str:
    """Return a paired difference with its interval."""
    apart = mine - other
    low, middle, high = np.percentile(apart, (2.5, 50, 97.5))
    if not apart.any():
        return "–"
    return f"{middle:+.3f} ({low:+.3f} to {high:+.3f})"


def make_table(predictions: Sequence[Prediction], labels: np.ndarray) -> ResultTable:
    """Return the figures of all models."""
    head = ("model", "accuracy", "AUROC", "AUPRC", "less logistic regression", "less boosting")
    table = ResultTable(head)
    redrawn = redraw_models(predictions, labels)
    for model in sorted(redrawn, key=_place):
        own = [each for each in predictions if each.model == model]
        figures = np.array([measure(each.scores, labels[each.rows]) for each in own]).mean(0)
        cells = [f"{figure:.3f}" for figure in figures]
        cells += [write_difference(redrawn[model], redrawn[name]) for name in POOLED]
        table.add(model, *cells)
    return table


def _place(model: str) -> tuple[bool, bool, bool, int]:
    """Return the order of rows: one round by ε, then alone, then pooled."""
    order = [f"ε = {epsilon:g}," in model for epsilon in EPSILONS]
    epsilon = order.index(True) if True in order else -1
    return model in POOLED, "alone" in model, "one noise" in model, epsilon


def main() -> None:
    """Print a table for each plan, and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", default=",".join(PLANS))
    parser.add_argument("--noises", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.plans.split(","):
        plan = name if name in PLANS else f"{name}-one-round"
        hospitals = open_hospitals(plan)
        private = compute_private_features(open_hospitals(plan, PRIVATE))
        predictions = [*predict_tests(hospitals, private, options.noises)]
        table = make_table(predictions, hospitals.labels)
        print(table.to_markdown())
        notes = [
            f"{plan}, {len(hospitals.labels):,} records, {len(predictions[0].rows):,} of them the"
            f" tests; δ = {DELTA:g}, mean of {options.noises} draws of noise; differences are of"
            f" AUROC, with the middle 95 % of {REDRAWN} draws of the records with replacement",
        ]
        packages = ("torch", "scikit-learn")
        record("one-round", plan, table, packages=packages, notes=notes)


if __name__ == "__main__":
    main()
