"""The page's part on how good the shared model is, beside its baselines and round by round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fedgraft.simulations.readable import show_bytes, show_spread
from fedgraft.simulations.report import page
from fedgraft.simulations.report.intervals import (
    Interval,
    estimate_area,
    estimate_share,
    show_interval,
)
from fedgraft.simulations.report.pictures import draw_accuracy
from fedgraft.simulations.results_in_words import describe_results
from fedgraft.simulations.results_table import MeasuredModel, list_models

Result = Mapping[str, Any]
# lines of a run's metrics.jsonl
Lines = Sequence[Mapping[str, Any]]

HEAD = ("model", "AUROC", "accuracy", "F1", "loss", "calibration error", "sent in all rounds")
READING = (
    "In brackets: 95 % intervals, for what other test examples of the same kind would show. One run"
    " tells nothing of another seed; a study does. AUROC: how often a case of one class is scored"
    " above one of another (guessing: 0.5). Calibration error: how far the stated certainty is from"
    " how often it is right."
)
CAPTION = "Accuracy of the shared model, round by round, on the sites' own test data."


def show_quality(result: Result, lines: Lines) -> list[str]:
    """Return the table of models, what it means in words, and accuracy by round.

    Args:
        result: the run's result.json.
        lines: of its metrics.jsonl.
    """
    tests = _count_test_labels(result)
    rows = [_model_cells(model, tests) for model in list_models([result])]
    examples = result["final"]["global"].get("examples", 0)
    measured = (
        f"Every row is measured on the same {examples} test examples, those of all sites together."
    )
    return [
        page.heading("How good is the shared model?"),
        page.paragraph(f"{measured} {READING}"),
        page.table(HEAD, rows, strong=0),
        page.bullets(describe_results([result], privacy=False)),
        page.figure(_draw_rounds(lines), CAPTION),
    ]


def _model_cells(model: MeasuredModel, tests: Sequence[int]) -> list[str]:
    (row,) = model.metrics
    cells = [model.name, _show_area(row, tests), _show_accuracy(row)]
    for key in ("f1", "loss", "calibration_error"):
        cells.append(show_spread([row.get(key)]))
    if model.sent:
        cells.append(show_bytes(model.sent[0]))
    else:
        cells.append("–")
    return cells


def _show_accuracy(row: Mapping[str, Any]) -> str:
    accuracy = row.get("accuracy")
    if accuracy is None:
        return "–"
    return show_interval(estimate_share(accuracy, row["examples"]))


def _show_area(row: Mapping[str, Any], tests: Sequence[int]) -> str:
    """Return the AUROC, with its interval where there are two classes."""
    area = row.get("auroc")
    if area is None:
        return "–"
    if len(tests) != 2:
        return show_interval(Interval(area))
    negatives, positives = tests
    return show_interval(estimate_area(area, positives, negatives))


def _count_test_labels(result: Result) -> list[int]:
    """Return the test examples of each class over all nodes; nothing where they are not known."""
    by_node = result.get("data", {}).get("test_labels", {})
    if not by_node:
        return []
    return [sum(column) for column in zip(*by_node.values(), strict=True)]


def _draw_rounds(lines: Lines) -> bytes | None:
    """Draw after how many rounds each site measured what."""
    by_node: dict[str, list[tuple[int, float, int]]] = defaultdict(list)
    for line in lines:
        rounds = line["round"]
        row = line.get("final")
        if "final" not in line:
            # the model that a site received is that of the round before
            rounds -= 1
            row = line.get("received")
        if row and row.get("accuracy") is not None:
            by_node[line["node"]].append((rounds, row["accuracy"], row["examples"]))
    if not by_node:
        return None
    return draw_accuracy(by_node)
