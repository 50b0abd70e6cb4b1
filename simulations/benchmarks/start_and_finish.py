"""LoRA by 20 rounds on `pneumonia`, alone and between two closed forms: the head that steps begin
with, and the head over adapted features that they end with.

    python -m fedgraft.simulations.benchmarks.start_and_finish [--seeds 5] [--alone N] [--out DIR]

Twenty federations of minutes each: with --out, what is finished there is not run again, and with
--alone LoRA by itself is run for fewer seeds, those that are there aside.

Both cost a round each, out of the 20. The head of one round alone is the same whatever the deal.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedgraft.common.run_files import RESULT
from fedgraft.simulations.benchmarks.over_seeds import Results, run_over_seeds, show_metric
from fedgraft.simulations.benchmarks.result_files import ResultTable, record

ALPHAS = (0.5, 0.1)
FIRST_SEED = 7
WAYS = {
    "start, LoRA, finish": ("train.start=closed-form", "train.finish=closed-form"),
    "LoRA": (),
}
ALONE = "LoRA"
HEAD = (
    "α of the deal",
    "training",
    "seeds",
    "accuracy",
    "least of the seeds",
    "AUROC",
    "least",
    "ECE",
)


def main() -> None:
    """Run both over the seeds at both deals, print a table in Markdown and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--alone", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    table = ResultTable(HEAD, words=(1,))
    table.print_head()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        for alpha in ALPHAS:
            deal = f"simulation.partition={{kind: dirichlet, alpha: {alpha}}}"
            for name, settings in WAYS.items():
                out = folder / f"{alpha}-{name}"
                count = options.alone if name == ALONE else None
                results = [
                    run_once([deal, *settings], out, seed)
                    for seed in seeds
                    if count is None or seed < FIRST_SEED + count or result_of(out, seed).exists()
                ]
                table.add(f"{alpha:g}", name, str(len(results)), *show_results(results))
                table.print_last()
        alone = run_over_seeds("pneumonia-one-round", [], Path(temporary, "alone"), seeds=1)
        table.add("any", "one round alone", "any", *show_results(alone))
        table.print_last()
    record("one-round", "between", table, notes=[f"seeds from {FIRST_SEED}"])


def result_of(out: Path, seed: int) -> Path:
    """Return where the result of a seed lies, there or not."""
    return out / f"seed-{seed}" / RESULT


def run_once(settings: Sequence[str], out: Path, seed: int) -> dict[str, Any]:
    """Run one seed, unless its result is there. Return its result.json."""
    done = result_of(out, seed)
    if not done.exists():
        shutil.rmtree(done.parent, ignore_errors=True)
        run_over_seeds("pneumonia", [*settings, f"seed={seed}"], done.parent, seeds=1)
    return json.loads(done.read_text())


def show_results(results: Results) -> list[str]:
    """Return accuracy and AUROC, each with the least of them, and the calibration error."""
    cells = []
    for metric in ("accuracy", "auroc"):
        least = min(result["final"]["global"][metric] for result in results)
        cells += [show_metric(results, metric), f"{least:.3f}"]
    return [*cells, show_metric(results, "calibration_error")]


if __name__ == "__main__":
    main()
