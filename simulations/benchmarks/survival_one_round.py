"""Survival in one round at three hospitals, beside Cox regression on all of their people pooled.

    .venv/bin/pip install --no-deps lifelines autograd autograd-gamma formulaic interface-meta
    .venv/bin/python -m fedgraft.simulations.benchmarks.survival_one_round

lifelines asks for pandas 2, and works with what is here.

Both data sets come with lifelines: breast cancer (`gbsg2`, 686 women: Schumacher et al. 1994) and
arrests after prison (`rossi`, 432 men: Rossi et al. 1980). Five folds are tested in turn, on curves
at the same cuts. Each hospital keeps a twentieth of its people for tests of its own, so that the
federation learns from that many fewer than Cox regression does.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import fedgraft
from fedgraft.common.tasks.survival_sums import sums_of
from fedgraft.common.tasks.survival_times import count_intervals
from fedgraft.simulations.benchmarks.result_files import ResultTable, record

FOLDS = 5
SITES = 3
# of Cox regression, as lifelines has it: a little keeps it from failing
PENALTY = 0.01


PRIVATE = {"privacy.mode": "sample", "privacy.target_epsilon": 3}


class People(NamedTuple):
    """A data set: its columns of time and event, where time is cut, and between which values its
    numbers lie, as is usual and not from these people.
    """

    load: str
    time: str
    event: str
    cuts: tuple[float, ...]
    ranges: Mapping[str, tuple[float, float]]


DATA = {
    "gbsg2": People(
        "load_gbsg2",
        "time",
        "cens",
        (365, 730, 1095, 1460, 1825),
        {
            "age": (25, 80),
            "tsize": (0, 70),
            "pnodes": (0, 20),
            "progrec": (0, 300),
            "estrec": (0, 300),
        },
    ),
    "rossi": People(
        "load_rossi",
        "week",
        "arrest",
        (13, 26, 39, 52),
        {
            "fin": (0, 1),
            "age": (17, 45),
            "race": (0, 1),
            "wexp": (0, 1),
            "mar": (0, 1),
            "paro": (0, 1),
            "prio": (0, 15),
        },
    ),
}


def main() -> None:
    """Measure each data set, print the table in Markdown and record it."""
    table = ResultTable(("people", "model", "concordance", "Brier score", "loss"))
    table.print_head()
    for name, people in DATA.items():
        for model, folds in measure(people).items():
            cells = []
            for key in ("concordance", "brier", "loss"):
                cells.append(f"{np.mean([metrics[key] for metrics in folds]):.3f}")
            table.add(name, model, *cells)
            table.print_last()
    record("survival", "beside-cox", table, packages=("torch", "lifelines"))


def measure(people: People) -> dict[str, list[dict[str, Any]]]:
    """Return the metrics of each model in each fold."""
    import lifelines.datasets

    frame = getattr(lifelines.datasets, people.load)()
    folds = np.random.default_rng(0).permutation(len(frame)) % FOLDS
    measured: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for fold in range(FOLDS):
        train = frame[folds != fold]
        test = frame[folds == fold]
        events = test[people.event].to_numpy() == 1
        targets = count_intervals(test[people.time].to_numpy(float), events, people.cuts)
        curves = {
            "one round, three hospitals": predict_in_one_round(people, train, test, {}),
            "the same, ε = 3 at each": predict_in_one_round(people, train, test, PRIVATE),
            "Cox regression, pooled": predict_by_cox(people, train, test),
            "Kaplan and Meier's curve, pooled": predict_without_features(people, train, test),
        }
        for model, curve in curves.items():
            sums = sums_of(logits_of(curve), torch.from_numpy(targets), people.cuts)
            measured[model].append(sums.summary())
    return measured


def predict_in_one_round(
    people: People, train: pd.DataFrame, test: pd.DataFrame, changes: Mapping[str, Any]
) -> np.ndarray:
    """Return the survival at each cut `(n, K)` that a federation predicts."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for site in range(SITES):
            path = Path(folder) / f"site-{site}.csv"
            train.iloc[site::SITES].to_csv(path, index=False)
            files.append(str(path))
        test.to_csv(Path(folder) / "test.csv", index=False)
        plan = make_plan(people, train, files)
        out = Path(folder) / "run"
        run: Any = fedgraft.simulate(plan, set=dict(changes), out=out, progress=False)
        told = run.shared_model.predict(Path(folder) / "test.csv")
    columns = [name for name in told.columns if name.startswith("without event")]
    return told[columns].to_numpy(float)


def make_plan(people: People, train: pd.DataFrame, files: list[str]) -> dict[str, Any]:
    """Return the plan: numbers bent at quantiles, words as categories."""
    features = train.drop(columns=[people.time, people.event])
    categories: list[Mapping[str, Any]] = []
    ranges: list[Mapping[str, Any]] = []
    for name, (low, high) in people.ranges.items():
        ranges.append({"columns": [name], "low": low, "high": high})
    for name in features:
        if not pd.api.types.is_numeric_dtype(features[name]):
            values = sorted(map(str, features[name].unique()))
            categories.append({"column": name, "values": values})
    return {
        "name": "survival",
        "task": {
            "kind": "tabular-survival",
            "columns": list(features.columns),
            "categories": categories,
            "ranges": ranges,
            "targets": [people.time, people.event],
            "survival": {"cuts": list(people.cuts)},
        },
        "backbone": {"name": "columns"},
        "adapter": {"method": "head"},
        "train": {"method": "closed-form"},
        "simulation": {"data": files, "partition": {"kind": "files"}, "test_fraction": 0.05},
    }


def predict_by_cox(people: People, train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """Return the same of Cox regression with Breslow's curve, as lifelines has it."""
    from lifelines import CoxPHFitter

    both = pd.concat([train, test])
    features = both.drop(columns=[people.time, people.event])
    coded = pd.get_dummies(features, drop_first=True).astype(float)
    known = coded.iloc[: len(train)].assign(
        time=train[people.time].to_numpy(), event=train[people.event].to_numpy()
    )
    cox = CoxPHFitter(penalizer=PENALTY).fit(known, "time", "event")
    curves = cox.predict_survival_function(coded.iloc[len(train) :], times=list(people.cuts))
    return curves.to_numpy().T


def predict_without_features(people: People, train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """Return the same curve for everybody."""
    from lifelines import KaplanMeierFitter

    fitter = KaplanMeierFitter().fit(train[people.time], train[people.event])
    curve = fitter.survival_function_at_times(list(people.cuts)).to_numpy()
    return np.tile(curve, (len(test), 1))


def logits_of(curves: np.ndarray) -> torch.Tensor:
    """Return the logits of hazards that curves `(n, K)` have."""
    whole = np.concatenate([np.ones((len(curves), 1)), np.clip(curves, 1e-9, 1 - 1e-9)], axis=1)
    hazards = np.clip(1 - whole[:, 1:] / whole[:, :-1], 1e-9, 1 - 1e-9)
    return torch.logit(torch.from_numpy(hazards))


if __name__ == "__main__":
    main()
