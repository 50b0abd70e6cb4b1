"""A study's cells by everything but their seed: means with intervals, and what attacks found over
the seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.simulations.attacks.empirical_epsilon import Audit, among
from fedgraft.simulations.report.attacks_part import Found, refuted
from fedgraft.simulations.report.intervals import Interval, of_mean
from fedgraft.simulations.study.study_file import Study

Row = dict[str, Any]
NAMES = {"simulation.nodes": "{} hospitals", "simulation.partition.alpha": "α = {}"}
SHARES = ("accuracy", "auroc", "f1", "calibration_error")  # never below 0 or above 1


@dataclass(frozen=True)
class Group:
    """The cells that differ by their seed only."""

    name: str
    rows: list[Row]

    def over_seeds(self, column: str) -> Interval | None:
        """A column's mean and interval; None where no cell has it."""
        values = [row[column] for row in self.rows if row.get(column) is not None]
        if not values:
            return None
        found = of_mean(values)
        if column.rpartition(".")[2] in SHARES and found.low is not None and found.high is not None:
            return Interval(found.value, max(0.0, found.low), min(1.0, found.high))
        return found


def grouped(study: Study, rows: Sequence[Row]) -> list[Group]:
    """Cells by everything but their seed, in the order of the table."""
    keys = [*(["case"] if study.cases else []), *study.grid]
    found: dict[str, list[Row]] = {}
    for row in rows:
        short = [row[key] if key == "case" else _label(key, row[key]) for key in keys]
        found.setdefault(", ".join(short) or study.name, []).append(row)
    return [Group(name, cells) for name, cells in found.items()]


def _label(key: str, value: Any) -> str:
    """A key of the grid and its value, in a few words."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return NAMES.get(key, f"{key.rpartition('.')[2]} {{}}").format(short)


def found_on(folder: Path, group: Group) -> Found:
    """What each attack found on a plan, over its seeds."""
    runs = []
    for row in group.rows:
        file = folder / "cells" / row["cell"] / "attacks.json"
        if file.is_file():
            runs.append(json.loads(file.read_text()))
    names = [name for name in (runs[0] if runs else {}) if all(name in run for run in runs)]
    return {name: _over_seeds([run[name] for run in runs]) for name in names}


def _over_seeds(found: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    kind = found[0].get("kind")
    if (
        kind == "audit"
    ):  # one that refutes, or else the one that proves most; all hold together at their confidence
        known = [field.name for field in fields(Audit)]
        each = [
            {**one, **asdict(among(len(found), Audit(**{key: one[key] for key in known})))}
            for one in found
        ]
        return max(each, key=lambda one: (refuted(one), one["epsilon"]))
    return _mean(found)


def _mean(found: Sequence[Any]) -> Any:
    """Numbers by their mean, intervals by the widest, everything else by the first."""
    first = found[0]
    if isinstance(first, Mapping):
        return {
            key: value if key == "roc" else _mean([each[key] for each in found])
            for key, value in first.items()
            if all(key in each for each in found)
        }
    if (
        isinstance(first, list)
        and len(first) == 2
        and all(isinstance(value, int | float) for value in first)
    ):
        return [min(each[0] for each in found), max(each[1] for each in found)]
    if (
        isinstance(first, float | int)
        and not isinstance(first, bool)
        and all(is_number(each) for each in found)
    ):
        return float(np.mean(found)) if any(isinstance(each, float) for each in found) else first
    return first


def is_number(value: Any) -> bool:
    """Whether a value of the table is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
