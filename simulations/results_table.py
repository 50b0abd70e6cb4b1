"""The table at the end of a simulation: the shared model beside its baselines, over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fedgraft.common.tasks.measures import Measure, shown_measures, told_measures
from fedgraft.simulations.answers import question_of, read_answers
from fedgraft.simulations.readable import show_bytes, show_spread
from fedgraft.simulations.results_in_words import describe_results

# result.json of one seed, and the metrics of one model in it
Result = Mapping[str, Any]
Metrics = Mapping[str, Any]
Find = Callable[[Result], Metrics | None]

# as wide as a terminal of 80 columns bears: some columns with their spread, the others without
WITH_SPREAD = 2
MOST_COLUMNS = 4


@dataclass(frozen=True)
class MeasuredModel:
    """A model that was measured: its metrics by seed, and the bytes of its rounds by seed where any
    were sent.
    """

    name: str
    metrics: Sequence[Metrics]

    @property
    def sent(self) -> list[int]:
        """Bytes by seed; empty where nothing was sent."""
        return [row["bytes"] for row in self.metrics if "bytes" in row]


def list_models(results: Sequence[Result]) -> list[MeasuredModel]:
    """Return the shared model and each baseline that was measured, in the order of the table."""
    models = []
    for name, find in MODELS.items():
        metrics = [row for row in map(find, results) if row]
        if metrics:
            models.append(MeasuredModel(name, metrics))
    return models


def print_table(results: Sequence[Result], console: Console) -> None:
    """Print mean ± standard deviation over seeds; `sent` is what crossed the wire in the rounds,
    both ways.
    """
    table = Table(title=_title(results), title_justify="left")
    measures = list_columns(results)
    table.add_column("model", no_wrap=True)
    for head in (*(measure.words for measure in measures), "sent"):
        table.add_column(head, justify="right", no_wrap=True)
    for model in list_models(results):
        table.add_row(model.name, *show_cells(model, measures))
    console.print(table)
    for line in describe_results(results):
        # names in it are no markup
        console.print(line, soft_wrap=True, markup=False)


def list_columns(results: Sequence[Result]) -> list[Measure]:
    """Return what the table shows: as much as a terminal bears of what matters most."""
    measured = results[0]["final"]["global"]
    return told_measures(question_of(results[0]), measured)[:MOST_COLUMNS]


def count_round_bytes(spent: Mapping[str, Any]) -> int:
    """Return the bytes of all rounds, down and up, and of the looks at validation records between
    them; without the hand-out and the last evaluation.
    """
    rounds = list(spent["rounds"])
    if "validation" in spent:
        rounds.append(spent["validation"])
    return sum(row["down"] + row["up"] for row in rounds)


# ── models ────────────────────────────────────────────────────────────────────────────────────────
def _find_shared(result: Result) -> Metrics:
    sent = count_round_bytes(result["bytes"])
    return result["final"]["global"] | {"bytes": sent}


def _find_baseline(name: str) -> Find:
    return lambda result: result["baselines"].get(name)


def _find_best_alone(result: Result) -> Metrics | None:
    alone = result["baselines"].get("alone", {})
    return alone.get("best")


def _find_commonest(result: Result) -> Metrics | None:
    """Return what it is worth to answer always the commonest class."""
    answers = read_answers(result)
    if answers is None:
        return None
    known = {"accuracy": answers.majority, "examples": int(answers.counts.sum())}
    for measure in shown_measures(question_of(result)):
        if measure.chance is not None:
            known[measure.key] = measure.chance
    return known


MODELS: dict[str, Find] = {
    "shared model": _find_shared,
    "commonest class": _find_commonest,
    "one round": _find_baseline("one-round"),
    "head only": _find_baseline("head"),
    "random backbone": _find_baseline("random-backbone"),
    "alone, mean": _find_baseline("alone"),
    "alone, best": _find_best_alone,
    "full fine-tuning": _find_baseline("full"),
    "pooled data": _find_baseline("pooled"),
}


# ── cells ─────────────────────────────────────────────────────────────────────────────────────────
def _title(results: Sequence[Result]) -> str:
    name = results[0]["name"]
    seeds = ", ".join(str(result["seed"]) for result in results)
    if len(results) == 1:
        return f"{name}, seed {seeds}"
    return f"{name}, seeds {seeds}: mean ± standard deviation"


def show_cells(model: MeasuredModel, measures: Sequence[Measure]) -> list[str]:
    """Return the cells of a model's row after its name."""
    cells = []
    for number, measure in enumerate(measures):
        cell = _show_metric(model, measure.key)
        if number >= WITH_SPREAD:
            cell, _, _ = cell.partition(" ±")
        cells.append(cell)
    sent = model.sent
    cells.append(show_bytes(float(np.mean(sent))) if sent else "–")
    return cells


def _show_metric(model: MeasuredModel, key: str) -> str:
    return show_spread([row.get(key) for row in model.metrics])
