"""`open_records` as a test calls it: every option by its own name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgraft.client.data import data_set
from fedgraft.client.data.data_set import DataSource, Records, TaskData
from fedgraft.client.readers.reader import ManifestColumns, TableColumns
from fedgraft.client.readers.source import Label


def open_records(
    path: str | Path,
    *,
    kind: str,
    classes: Sequence[str],
    labels: Sequence[Label] | None = None,
    columns: Sequence[str] = (),
    categories: Mapping[str, Sequence[Label]] | None = None,
    target: str = "target",
    seed: int = 0,
    **source: Any,
) -> Records:
    """Options of the task first; whatever else there is says where the data are."""
    if "manifest" in source:
        source["manifest"] = ManifestColumns(*source["manifest"])
    task = TaskData(
        kind,
        tuple(classes),
        None if labels is None else tuple(labels),
        TableColumns.of(columns, categories or {}, target),
    )
    return data_set.open_records(DataSource(path, **source), task, seed)
