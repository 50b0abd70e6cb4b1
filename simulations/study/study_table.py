"""A study's tidy table: a row for each cell, a column for each thing that was set or measured.

`case`, the keys of the grid and `seed` come first; then the metrics of the shared model over all
test data, the worst node's, bytes and ε; then `baseline.NAME.METRIC` and `attack.NAME.…`. What was
not measured is empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgraft.common.files.whole_files import replacing
from fedgraft.simulations.results_table import round_bytes

METRICS = ("accuracy", "auroc", "f1", "loss", "calibration_error")
Row = dict[str, Any]


def row_of(labels: Mapping[str, Any], result: Mapping[str, Any], attacks: Mapping[str, Any]) -> Row:
    """One cell's row, from its result.json and its attacks.json."""
    row: Row = {key: _cell(value) for key, value in labels.items()}
    final, nodes = result["final"]["global"], result["final"]["nodes"]
    spent = list(result["privacy"].values())
    row |= {key: final[key] for key in METRICS if key in final}
    for key in ("accuracy", "auroc"):
        known = [node[key] for node in nodes.values() if node.get(key) is not None]
        if known:
            row[f"worst.{key}"], row[f"gap.{key}"] = min(known), max(known) - min(known)
    row |= {
        "examples": final.get("examples"),
        "epsilon": max((each["epsilon"] for each in spent), default=None),
        "delta": max((each["delta"] for each in spent), default=None),
        "adapter_bytes": result["bytes"]["adapter"],
        "bytes": round_bytes(result["bytes"]),
        "full_model_bytes": result["bytes"]["full_model"],
        "refused": len(result["refused"]),
        "seconds": result["seconds"].get("total"),
    }
    for name, found in result["baselines"].items():
        row |= {f"baseline.{name}.{key}": found.get(key) for key in METRICS if key in found}
    for name, found in attacks.items():
        row |= numbers(found, f"attack.{name}")
    return row | {"plan_hash": result["plan_hash"], "status": result["status"]}


def numbers(found: Mapping[str, Any], prefix: str) -> Row:
    """The numbers in nested mappings, by dotted name; an interval `[low, high]` gives two; curves
    are left out.
    """
    row: Row = {}
    for key, value in found.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            row |= numbers(value, name)
        elif isinstance(value, bool | int | float):
            row[name] = value
        elif (
            isinstance(value, list)
            and len(value) == 2
            and all(isinstance(each, int | float) for each in value)
        ):
            row[f"{name}.low"], row[f"{name}.high"] = value
    return row


def write_table(rows: Sequence[Row], folder: Path) -> None:
    """`table.csv` and `table.parquet`, each in one step: the same rows, columns and types."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    table = pa.table({name: _column(rows, name) for name in columns_of(rows)})
    for name, write in (("table.csv", csv.write_csv), ("table.parquet", parquet.write_table)):
        with replacing(folder / name) as part:
            write(table, part)


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Every column, in the order in which the rows bring them."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _column(rows: Sequence[Row], name: str) -> list[Any]:
    """A column's values in one type: numbers with texts among them become texts."""
    values = [row.get(name) for row in rows]
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values] if len(kinds) > 1 else values


def _cell(value: Any) -> Any:
    """A label as a value of the table: a list or a group of keys becomes its JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
