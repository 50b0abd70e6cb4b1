"""What sample-level privacy costs on `pneumonia`: accuracy and AUROC at ε ∈ {1, 3, 8, ∞}, over
three seeds.

    .venv/bin/python -m fedgraft.simulations.benchmarks.cost_of_privacy

Sixteen federations. What a private step takes beside a plain one:
`fedgraft.simulations.benchmarks.steps`.

Added biases, since noise grows with the number of values and they are the fewest; in the last block
only, since what lies before it is then computed once; ten rounds. Batch and learning rate are
chosen at ε = 3 by the AUROC of one seed on validation records: no test record has a say. No ε
counts that look; it stands for a choice on public records. Each node's noise is calibrated to its
own data, so every node's ε is the target. The same settings without privacy give the row ∞; the
ready plan's own (LoRA everywhere) are better without noise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.simulations.benchmarks.over_seeds import (
    list_epsilons,
    run_over_seeds,
    show_metric,
)
from fedgraft.simulations.benchmarks.result_files import ResultTable, record

SETTINGS = (
    "adapter.method=bias",
    "adapter.targets=last-block",
    "train.rounds=10",
    "train.schedule=cosine",
)
CHOICES = (
    ("train.batch_size=64", "train.optimizer.lr=0.01"),
    ("train.batch_size=64", "train.optimizer.lr=0.03"),
    ("train.batch_size=128", "train.optimizer.lr=0.03"),
    ("train.batch_size=128", "train.optimizer.lr=0.1"),
)
CHOSEN_AT = 3.0
EPSILONS = (1.0, 3.0, 8.0)
SEEDS = 3
HEAD = (
    "ε of every node (δ = 1e-5, example, PRV)",
    "accuracy",
    "AUROC",
    "loss",
    "largest ε counted",
)


def main() -> None:
    """Run each ε over the seeds, print a table in Markdown and record it."""
    table = ResultTable(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        chosen = choose_settings(Path(folder))
        table.print_head()
        for target in (*EPSILONS, None):
            table.add(*measure(target, chosen, Path(folder) / f"{target}"))
            table.print_last()
    notes = [f"chosen by validation records: {', '.join(chosen)}"]
    record("privacy", "accuracy", table, packages=("torch", "opacus"), notes=notes)


def choose_settings(folder: Path) -> tuple[str, ...]:
    """Return the settings with the highest AUROC on validation records, of one seed."""
    data = folder / "validation.npz"
    write_validation_as_tests(data)
    scores: dict[tuple[str, ...], float] = {}
    for number, choice in enumerate(CHOICES):
        settings = [*list_settings(CHOSEN_AT, choice), f"simulation.data={data}"]
        (result,) = run_over_seeds("pneumonia", settings, folder / f"choice-{number}", seeds=1)
        scores[choice] = result["final"]["global"]["auroc"]
        print(f"{', '.join(choice)}: AUROC {scores[choice]:.3f} on validation records")
    return max(CHOICES, key=lambda choice: scores[choice])


def write_validation_as_tests(path: Path) -> None:
    """Write the X-rays with their validation records as tests, and no others."""
    plan = load_plan("pneumonia")
    assert plan.simulation is not None
    (file,) = plan.simulation.files
    archive = np.load(resolve(file, find_plan("pneumonia").parent))
    # three images are in both splits, the same bytes
    trained = {image.tobytes() for image in archive["train_images"]}
    others = [image.tobytes() not in trained for image in archive["val_images"]]
    np.savez(
        path,
        train_images=archive["train_images"],
        train_labels=archive["train_labels"],
        test_images=archive["val_images"][others],
        test_labels=archive["val_labels"][others],
    )


def list_settings(target: float | None, chosen: Sequence[str]) -> list[str]:
    """Return what of the plan is changed at one ε; None: without privacy."""
    settings = [*SETTINGS, *chosen]
    if target is not None:
        settings += ["privacy.mode=sample", f"privacy.target_epsilon={target:g}"]
    return settings


def measure(target: float | None, chosen: Sequence[str], out: Path) -> list[str]:
    """Return the row of one ε; None: without privacy."""
    results = run_over_seeds("pneumonia", list_settings(target, chosen), out, seeds=SEEDS)
    epsilons = list_epsilons(results)
    return [
        "∞" if target is None else f"{target:g}",
        show_metric(results, "accuracy"),
        show_metric(results, "auroc"),
        show_metric(results, "loss"),
        f"{max(epsilons):.4f}" if epsilons else "–",
    ]


if __name__ == "__main__":
    main()
