"""The page's part on how good the shared model is, beside its baselines and round by round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fedgraft.common.tasks import task_line
from fedgraft.common.tasks.measures import (
    Measure,
    explain,
    main_measures,
    measure_of,
    measures_in,
    told_measures,
)
from fedgraft.simulations.answers import question_of
from fedgraft.simulations.readable import show_bytes, show_spread
from fedgraft.simulations.report import page
from fedgraft.simulations.report.intervals import (
    estimate_area,
    estimate_share,
    show_interval,
)
from fedgraft.simulations.report.pictures import draw_rounds
from fedgraft.simulations.results_in_words import describe_results
from fedgraft.simulations.results_table import MeasuredModel, list_models

Result = Mapping[str, Any]
# lines of a run's metrics.jsonl
Lines = Sequence[Mapping[str, Any]]

READING = (
    "In brackets: 95 % intervals, for what other test examples of the same kind would show. One run"
    " tells nothing of another seed; a study does."
)
CAPTION = "{} of the shared model, round by round, on the sites' own test data."


def show_quality(result: Result, lines: Lines) -> list[str]:
    """Return the table of models, what it means in words, and accuracy by round.

    Args:
        result: the run's result.json.
        lines: of its metrics.jsonl.
    """
    tests = _count_test_labels(result)
    measures = list_measures(result)
    rows = [_model_cells(model, measures, tests) for model in list_models([result])]
    main, _ = main_measures(question_of(result))
    head = ["model", *(measure.words for measure in measures), "sent in all rounds"]
    examples = result["final"]["global"].get("examples", 0)
    measured = (
        f"Every row is measured on the same {examples} test examples, those of all sites together."
    )
    return [
        page.heading("How good is the shared model?"),
        page.paragraph(f"{measured} {READING} {explain(measures)}"),
        page.table(head, rows, strong=0),
        page.bullets(describe_results([result], privacy=False)),
        *_show_labels(result),
        page.figure(_draw_lines(lines, main), CAPTION.format(main.title)),
    ]


def _show_labels(result: Result) -> list[str]:
    """Return a table of the labels, where a record has several."""
    labels = result["final"].get("labels", {})
    if not labels:
        return []
    measures = measures_in(next(iter(labels.values())))
    rows = []
    for name, row in labels.items():
        cells = [name, f"{row['positives']:,} of {row['examples']:,}"]
        cells += [show_spread([row[each.key]]) for each in measures]
        rows.append(cells)
    head = ["label", "there are in the tests, of those where it is known"]
    head += [each.words for each in measures]
    return [page.heading("Label by label", 3), page.table(head, rows)]


def list_measures(result: Result) -> list[Measure]:
    """Return everything that was measured, in the order of tables."""
    question = question_of(result)
    shown = told_measures(question, result["final"]["global"])
    others = [measure_of(key) for key in task_line(question).metrics]
    return [*shown, *(measure for measure in others if measure not in shown)]


def _model_cells(
    model: MeasuredModel, measures: Sequence[Measure], tests: Sequence[int]
) -> list[str]:
    (row,) = model.metrics
    cells = [model.name]
    for measure in measures:
        cells.append(_show_value(row, measure, tests))
    if model.sent:
        cells.append(show_bytes(model.sent[0]))
    else:
        cells.append("–")
    return cells


def _show_value(row: Mapping[str, Any], measure: Measure, tests: Sequence[int]) -> str:
    """Return a metric: a share with its interval, an AUROC with its own where there are two
    classes.
    """
    value = row.get(measure.key)
    if value is None:
        return "–"
    if measure.is_share:
        return show_interval(estimate_share(value, row["examples"]))
    if measure.key == "auroc" and len(tests) == 2:
        negatives, positives = tests
        return show_interval(estimate_area(value, positives, negatives))
    return show_spread([value])


def _count_test_labels(result: Result) -> list[int]:
    """Return the test examples of each class over all nodes; nothing where they are not known."""
    by_node = result.get("data", {}).get("test_labels", {})
    if not by_node:
        return []
    return [sum(column) for column in zip(*by_node.values(), strict=True)]


def _draw_lines(lines: Lines, measure: Measure) -> bytes | None:
    """Draw after how many rounds each site measured what."""
    by_node: dict[str, list[tuple[int, float, int]]] = defaultdict(list)
    for line in lines:
        rounds = line["round"]
        row = line.get("final")
        if "final" not in line:
            # the model that a site received is that of the round before
            rounds -= 1
            row = line.get("received")
        if row and row.get(measure.key) is not None:
            by_node[line["node"]].append((rounds, row[measure.key], row["examples"]))
    measured = {point[0] for points in by_node.values() for point in points}
    # one round is no line
    if len(measured) < 2:
        return None
    return draw_rounds(by_node, measure.words)
