"""Masks over all images of `nuclei`, threefold: the head of one round and the decoder by steps.

    python -m fedgraft.simulations.benchmarks.nuclei_folds

Fold k keeps every third image of each microscope for tests, from the list's k-th on: each of the
196 images is a test once.
"""

from __future__ import annotations

import csv
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan_file import find_plan
from fedgraft.simulations.benchmarks.over_seeds import run_over_seeds
from fedgraft.simulations.benchmarks.result_files import ResultTable, record

PLAN = "nuclei"
MANIFEST = "../shared/data/nuclei/manifest.csv"
FOLDS = 3
MICROSCOPES = ("fluorescence", "histology", "brightfield")
# trained on patches beside the head that sums give, all sites of one weight
DECODER = (
    "train.method=steps",
    "train.start=closed-form",
    "train.rounds=61",
    "train.local_steps=4",
    "train.batch_size=8",
    "train.augment=patches",
    "train.schedule=cosine",
    "train.optimizer.lr=0.003",
    "aggregate.weighting=equal",
    "evaluate.every=61",
)
# what is measured, and what of the plan is changed for it
ROWS: Mapping[str, tuple[str, ...]] = {
    "one round": (),
    "a decoder by steps": DECODER,
}


def main() -> None:
    """Print the table and record it."""
    table = ResultTable(("head", *MICROSCOPES, "all 196", "the folds"))
    table.print_head()
    with tempfile.TemporaryDirectory() as folder:
        lists = [write_fold(number, Path(folder)) for number in range(FOLDS)]
        for name, changes in ROWS.items():
            table.add(name, *measure(lists, changes, Path(folder) / name))
            table.print_last()
    notes = ["Dice, mean over the images of three folds, each a test once; seed 7"]
    record("families", "nuclei-folds", table, packages=("torch", "timm"), notes=notes)


def write_fold(number: int, folder: Path) -> Path:
    """Write the list of images with one fold's splits; return its path."""
    manifest = resolve(MANIFEST, find_plan(PLAN).parent)
    seen: Counter[str] = Counter()
    path = folder / f"fold-{number}.csv"
    with manifest.open() as source, path.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(("path", "mask", "microscope", "split"))
        for row in csv.DictReader(source):
            microscope = row["microscope"]
            split = "test" if seen[microscope] % FOLDS == number else "train"
            seen[microscope] += 1
            files = [str(manifest.parent / row[column]) for column in ("path", "mask")]
            writer.writerow((*files, microscope, split))
    return path


def measure(lists: Sequence[Path], changes: Sequence[str], out: Path) -> list[str]:
    """Return the mean Dice of each microscope's images and of all, and of each fold by itself."""
    scores: defaultdict[str, list[float]] = defaultdict(list)
    counts: defaultdict[str, list[int]] = defaultdict(list)
    folds: list[str] = []
    for number, path in enumerate(lists):
        settings = [*changes, f"simulation.data={path}"]
        (result,) = run_over_seeds(PLAN, settings, out / str(number), seeds=1, baselines="none")
        final = result["final"]
        folds.append(f"{final['global']['dice']:.3f}")
        for node, metrics in (*final["nodes"].items(), ("all", final["global"])):
            scores[node].append(metrics["dice"])
            counts[node].append(metrics["examples"])
    means = []
    for name in (*MICROSCOPES, "all"):
        means.append(f"{np.average(scores[name], weights=counts[name]):.3f}")
    return [*means, ", ".join(folds)]


if __name__ == "__main__":
    main()
