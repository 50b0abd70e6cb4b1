"""A study's tidy table: a row for each cell, a column for each thing that was set or measured.

`case`, the keys of the grid and `seed` come first; then the metrics of the shared model over all
test data, the worst node's, `validation.METRIC` over all validation data, bytes and ε; then
`baseline.NAME.METRIC` and `attack.NAME.…`. What was not measured is empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgraft.common.files.whole_files import replacing
from fedgraft.common.result import Validation
from fedgraft.common.tasks import list_metrics
from fedgraft.simulations.flatten import flatten_numbers
from fedgraft.simulations.results_in_words import count_largest_reply
from fedgraft.simulations.results_table import count_round_bytes

BY_SITE = ("accuracy", "auroc")
Row = dict[str, Any]
Result = Mapping[str, Any]


def make_row(labels: Mapping[str, Any], result: Result, attacks: Mapping[str, Any]) -> Row:
    """Return one cell's row, from its result.json and its attacks.json."""
    row: Row = {}
    for key, value in labels.items():
        row[key] = _write_label(value)
    row |= _select_metrics(result["final"]["global"])
    row |= _compare_sites(result["final"]["nodes"])
    row |= _select_validation(result)
    row |= _list_costs(result)
    for name, baseline in result["baselines"].items():
        row |= _select_metrics(baseline, f"baseline.{name}.")
    for name, measured in attacks.items():
        row |= flatten_numbers(measured, f"attack.{name}")
    return row | {"plan_hash": result["plan_hash"], "status": result["status"]}


def _write_label(value: Any) -> Any:
    """Return a label as a value of the table: a list or a group of keys becomes its JSON."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return value


def _select_metrics(measured: Mapping[str, Any], prefix: str = "") -> Row:
    return {prefix + key: measured[key] for key in list_metrics() if key in measured}


def _select_validation(result: Result) -> Row:
    """Return the shared model's metrics on validation records, and which round it is of; nothing
    where it was not measured on them.
    """
    if not result.get("validation"):
        return {}
    validation = Validation.model_validate(result["validation"])
    number = validation.kept(result["rounds_done"])
    measured = validation.metrics_of(number)
    return {"kept_round": number, **_select_metrics(measured, "validation.")}


def _compare_sites(nodes: Mapping[str, Mapping[str, Any]]) -> Row:
    """Return the worst site's accuracy and AUROC, and how far the best is from it."""
    row: Row = {}
    for key in BY_SITE:
        known = [node[key] for node in nodes.values() if node.get(key) is not None]
        if known:
            worst = min(known)
            row[f"worst.{key}"] = worst
            row[f"gap.{key}"] = max(known) - worst
    return row


def _list_costs(result: Result) -> Row:
    """Return examples, the largest ε and δ, bytes, how many were left out, and seconds."""
    shared = result["final"]["global"]
    sent = result["bytes"]
    return {
        "examples": shared.get("examples"),
        "epsilon": _largest_spent(result, "epsilon"),
        "delta": _largest_spent(result, "delta"),
        "adapter_bytes": sent["adapter"],
        "reply_bytes": _count_reply(result),
        "bytes": count_round_bytes(sent),
        "full_model_bytes": sent["full_model"],
        "refused": len(result["refused"]),
        "seconds": result["seconds"].get("total"),
    }


def _count_reply(result: Result) -> float:
    """Return the bytes that leave a site in one round: of its update, or of its sums."""
    if result.get("closed_form"):
        return count_largest_reply(result)
    return result["bytes"]["adapter"]


def _largest_spent(result: Result, key: str) -> float | None:
    return max((spent[key] for spent in result["privacy"].values()), default=None)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────
def write_table(rows: Sequence[Row], folder: Path) -> None:
    """Write `table.csv` and `table.parquet`, each in one step: the same rows, columns and types."""
    # here, since a study that finishes no cell has no use for them
    import pyarrow as pa
    from pyarrow import csv, parquet

    columns = {}
    for name in list_columns(rows):
        columns[name] = _column(rows, name)
    table = pa.table(columns)
    with replacing(folder / "table.csv") as part:
        csv.write_csv(table, part)
    with replacing(folder / "table.parquet") as part:
        parquet.write_table(table, part)


def list_columns(rows: Iterable[Row]) -> list[str]:
    """Return every column, in the order in which the rows bring them."""
    columns: Row = {}
    for row in rows:
        columns |= row
    return list(columns)


def _column(rows: Sequence[Row], name: str) -> list[Any]:
    """Return a column's values in one type: numbers with texts among them become texts."""
    values = [row.get(name) for row in rows]
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return _convert(values, float)
    if len(kinds) > 1:
        return _convert(values, str)
    return values


def _convert(values: Sequence[Any], kind: type) -> list[Any]:
    return [None if value is None else kind(value) for value in values]
