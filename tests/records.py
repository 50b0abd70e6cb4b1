"""`open_records` as a test calls it: every option by its own name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgraft.client.data import data_set
from fedgraft.client.data.data_set import DataSource, Records
from fedgraft.client.readers.reader import ManifestColumns
from fedgraft.client.readers.source import Label
from fedgraft.common.plan.number_section import NumberSection
from fedgraft.common.plan.reading_section import ReadingSection
from fedgraft.common.plan.task_section import CategorySection, TaskSection


def open_records(
    path: str | Path,
    *,
    kind: str,
    classes: Sequence[str] = (),
    labels: Sequence[Label] | None = None,
    columns: Sequence[str] = (),
    categories: Mapping[str, Sequence[Label]] | None = None,
    target: str = "target",
    number: NumberSection | None = None,
    seed: int = 0,
    **source: Any,
) -> Records:
    """Options of the task first; whatever else there is says where the data are."""
    if "manifest" in source:
        source["manifest"] = ManifestColumns(*source["manifest"])
    if "reading" in source:
        source["reading"] = ReadingSection(**source["reading"])
    named = []
    for name, values in (categories or {}).items():
        named.append(CategorySection(column=name, values=tuple(values)))
    task = TaskSection(
        kind=kind,
        classes=tuple(classes),
        labels=None if labels is None else tuple(labels),
        columns=tuple(columns),
        categories=tuple(named),
        target=target,
        number=number,
    )
    return data_set.open_records(DataSource(path, **source), task, seed)
