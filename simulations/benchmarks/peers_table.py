"""The tables of `peers.py`: medians over the seeds, each beside its accuracy and versions."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedgraft.simulations.benchmarks.competitors import COMPETITORS, Competitor
from fedgraft.simulations.benchmarks.result_files import ResultTable

# one run of a competitor: wall, seconds, accuracy, versions; or why it failed
Run = Mapping[str, Any]
# by competitor/adapter/seed
Measured = dict[str, dict[str, Any]]

TITLES = {"head": "head", "lora": "LoRA r=8 in the last block", "full": "everything"}
# everything trained is set beside our LoRA
OURS_FOR = {"head": "head", "lora": "lora", "full": "lora"}
HEAD = (
    "who",
    "threads",
    "wall, s (range)",
    "rounds, s",
    "wall ÷ ours",
    "rounds ÷ ours",
    "accuracy",
    "versions",
)
WORDS = (0, 1, 7)


def make_tables(measured: Measured) -> Iterator[tuple[str, str, ResultTable]]:
    """Yield for each adapter its name, a title and the table; nothing without ours to compare
    with.
    """
    for adapter, title in TITLES.items():
        ours = select_good(list_runs(measured, "ours", OURS_FOR[adapter]))
        table = ResultTable(HEAD, words=WORDS)
        for name, competitor in COMPETITORS.items():
            runs = list_runs(measured, name, adapter)
            if ours and runs and adapter in competitor.adapters:
                table.add(*_cells(competitor, runs, ours))
        if table.rows:
            yield adapter, title, table


def list_runs(measured: Measured, name: str, adapter: str) -> list[Run]:
    """Return a competitor's runs with an adapter, over the seeds."""
    runs = []
    for key, run in measured.items():
        who, what, _ = key.split("/")
        if who == name and what == adapter:
            runs.append(run)
    return runs


def select_good(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that did not fail."""
    return [run for run in runs if "wall" in run]


def _cells(competitor: Competitor, runs: Sequence[Run], ours: Sequence[Run]) -> list[str]:
    good = select_good(runs)
    if not good:
        return [competitor.title, competitor.threads, "–", "–", "–", "–", "–", runs[0]["failed"]]
    walls = _column(good, "wall")
    wall = statistics.median(walls)
    rounds = statistics.median(_column(good, "seconds"))
    our_wall = statistics.median(_column(ours, "wall"))
    our_rounds = statistics.median(_column(ours, "seconds"))
    accuracy = statistics.mean(_column(good, "accuracy"))
    cells = [competitor.title, competitor.threads]
    cells.append(f"{wall:.1f} ({min(walls):.1f}–{max(walls):.1f})")
    cells.append(f"{rounds:.1f}")
    cells.append(f"{wall / our_wall:.1f}")
    cells.append(f"{rounds / our_rounds:.1f}")
    cells.append(f"{accuracy:.3f} (n={len(good)})")
    cells.append(_join_versions(good[0]["versions"]))
    return cells


def _column(runs: Sequence[Run], key: str) -> list[float]:
    return [run[key] for run in runs]


def _join_versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in versions.items())
