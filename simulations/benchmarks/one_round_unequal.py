"""One round under differential privacy where one class is rare: of `pneumonia`'s training images
all healthy ones, and 303 or 121 of the sick; noise at each of eight hospitals.

    python -m fedgraft.simulations.benchmarks.one_round_unequal [--draws 10] [--seeds 3]

Draw s keeps the sick that numpy's `default_rng(s).permutation` names first, and draws noise anew.
The records of the first draws are trained on by DP-SGD, too, with the settings of
`cost_of_privacy`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan_file import find_plan
from fedgraft.simulations.benchmarks.cost_of_privacy import CHOICES, list_settings
from fedgraft.simulations.benchmarks.one_round import (
    HOSPITALS,
    Features,
    compute_features,
    draw_results,
)
from fedgraft.simulations.benchmarks.over_seeds import run_over_seeds
from fedgraft.simulations.benchmarks.planted_runs import XRAYS
from fedgraft.simulations.benchmarks.result_files import ResultTable, record

KEPT = (303, 121)
# the settings of DP-SGD that `cost_of_privacy` chose on validation records
CHOSEN = CHOICES[3]
EPSILONS = (8.0, 3.0, 1.0)
SICK = 1


def main() -> None:
    """Print the table and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    features = compute_features()
    table = ResultTable(("sick", "training", *(f"ε = {each:g}" for each in EPSILONS)), words=(1,))
    table.print_head()
    for kept in KEPT:
        table.add(str(kept), "one round", *measure_one_round(features, kept, options.draws))
        table.print_last()
        if options.seeds:
            table.add(str(kept), "DP-SGD", *measure_steps(kept, options.seeds))
            table.print_last()
    notes = [
        f"δ = 1e-5; AUROC, mean (least) of {options.draws} draws in one round, of"
        f" {options.seeds} by DP-SGD"
    ]
    record("one-round", "unequal", table, packages=("torch", "opacus"), notes=notes)


def choose_rows(labels: np.ndarray, kept: int, draw: int) -> np.ndarray:
    """Return the positions of all healthy records and of `kept` of the sick, in order."""
    sick = np.flatnonzero(labels == SICK)
    chosen = np.random.default_rng(draw).permutation(sick)[:kept]
    return np.sort(np.concatenate([np.flatnonzero(labels != SICK), chosen]))


def measure_one_round(features: Features, kept: int, draws: int) -> list[str]:
    """Return AUROC by ε over draws of the records and of the noise."""
    cells = []
    for epsilon in EPSILONS:
        found = []
        for draw in range(draws):
            rows = choose_rows(features.train_labels.numpy(), kept, draw)
            some = replace(
                features, train=features.train[rows], train_labels=features.train_labels[rows]
            )
            ((_, auroc),) = draw_results(some, epsilon, "counted", HOSPITALS, 1, first=draw)
            found.append(auroc)
        cells.append(show(found))
    return cells


def measure_steps(kept: int, seeds: int) -> list[str]:
    """Return AUROC by ε of DP-SGD on the same records, dealt to the plan's eight hospitals."""
    source = dict(np.load(resolve(XRAYS, find_plan("pneumonia").parent)))
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        for epsilon in EPSILONS:
            found = []
            for draw in range(seeds):
                path = write_some(source, kept, draw, Path(folder))
                settings = [
                    *list_settings(epsilon, CHOSEN),
                    f"simulation.data={path}",
                    f"seed={7 + draw}",
                ]
                out = Path(folder, f"{epsilon:g}-{draw}")
                (result,) = run_over_seeds("pneumonia", settings, out, seeds=1)
                found.append(result["final"]["global"]["auroc"])
            cells.append(show(found))
    return cells


def write_some(source: dict[str, np.ndarray], kept: int, draw: int, folder: Path) -> Path:
    """Write the images with some of the sick ones as an .npz file; return its path."""
    rows = choose_rows(source["train_labels"][:, 0], kept, draw)
    some = dict(source)
    for name in ("train_images", "train_labels"):
        some[name] = source[name][rows]
    path = folder / f"some-{kept}-{draw}.npz"
    np.savez(path, allow_pickle=False, **some)
    return path


def show(values: list[float]) -> str:
    """Return `0.924 (0.905)`: the mean and the least."""
    return f"{np.mean(values):.3f} ({min(values):.3f})"


if __name__ == "__main__":
    main()
