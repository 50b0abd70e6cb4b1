"""A study's cells by everything but their seed: means with intervals, and what attacks found over
the seeds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.simulations.attacks.empirical_epsilon import Audit, correct_for_choice
from fedgraft.simulations.flatten import is_interval, is_number
from fedgraft.simulations.report.attack_results import (
    AttackResults,
    Measured,
    read_attack_results,
)
from fedgraft.simulations.report.audits_part import is_refuted
from fedgraft.simulations.report.intervals import Interval, estimate_mean
from fedgraft.simulations.study.study_file import Study

Row = dict[str, Any]
SHORT_NAMES = {"simulation.nodes": "{} hospitals", "simulation.partition.alpha": "α = {}"}
# never below 0 or above 1
SHARES = ("accuracy", "auroc", "f1", "calibration_error")


@dataclass(frozen=True)
class Group:
    """The cells that differ by their seed only.

    group = Group("ε = 8", [{"seed": 7, "accuracy": 0.80}, {"seed": 8, "accuracy": 0.82}])
    group.estimate("accuracy")      # Interval(value=0.81, low=…, high=…)
    group.estimate("epsilon")       # None
    """

    name: str
    rows: list[Row]

    def estimate(self, column: str) -> Interval | None:
        """Return a column's mean and interval over the seeds; None where no cell has it."""
        values = self.values(column)
        if not values:
            return None
        mean = estimate_mean(values)
        _, _, metric = column.rpartition(".")
        if metric not in SHARES or mean.bounds is None:
            return mean
        low, high = mean.bounds
        return Interval(mean.value, max(0.0, low), min(1.0, high))

    def values(self, column: str) -> list[Any]:
        """Return what the cells have in a column, without those that have nothing."""
        return [row[column] for row in self.rows if row.get(column) is not None]


def group_cells(study: Study, rows: Sequence[Row]) -> list[Group]:
    """Return cells by everything but their seed, in the order of the table."""
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_name[_name_of(study, row)].append(row)
    return [Group(name, cells) for name, cells in by_name.items()]


def _name_of(study: Study, row: Row) -> str:
    words = []
    if study.cases:
        words.append(row["case"])
    for key in study.grid:
        words.append(_shorten(key, row[key]))
    return ", ".join(words) or study.name


def _shorten(key: str, value: Any) -> str:
    """Return a key of the grid and its value, in a few words."""
    if key == "privacy":
        return _shorten_privacy(value)
    short = f"{value:g}" if isinstance(value, float) else str(value)
    _, _, last = key.rpartition(".")
    template = SHORT_NAMES.get(key, last + " {}")
    return template.format(short)


def _shorten_privacy(value: Any) -> str:
    """Return a section of privacy, as the table has it, in a few words: `ε = 3`; all of it where it
    says more than how much.
    """
    section = json.loads(value) if isinstance(value, str) else value
    if section == {"mode": "none"}:
        return "no privacy"
    asked = section.get("target_epsilon") if isinstance(section, dict) else None
    if is_number(asked) and section == {"mode": "sample", "target_epsilon": asked}:
        return f"ε = {asked:g}"
    return f"privacy {value}"


# ── attacks ───────────────────────────────────────────────────────────────────────────────────────
def merge_attacks(folder: Path, group: Group) -> AttackResults:
    """Return what each attack measured on a plan, over its seeds.

    Args:
        folder: the study's folder.
    """
    runs: list[AttackResults] = []
    for row in group.rows:
        results = read_attack_results(folder / "cells" / row["cell"])
        if results:
            runs.append(results)
    if not runs:
        return {}

    merged = {}
    for name in runs[0]:
        measured = [run[name] for run in runs if name in run]
        if len(measured) == len(runs):
            merged[name] = merge_seeds(measured)
    return merged


def merge_seeds(measured: Sequence[Measured]) -> Measured:
    """Return one attack over several seeds: its means, or of audits the one that says most."""
    if measured[0].get("kind") == "audit":
        return _strongest_audit(measured)
    return _merge(measured)


def _strongest_audit(audits: Sequence[Measured]) -> Measured:
    """Return one that refutes, or else the one that proves most; all hold together at their
    confidence.
    """
    corrected = []
    for measured in audits:
        together = correct_for_choice(_to_audit(measured), len(audits))
        corrected.append({**measured, **asdict(together)})
    return max(corrected, key=lambda audit: (is_refuted(audit), audit["epsilon"]))


def _to_audit(measured: Measured) -> Audit:
    return Audit(**{field.name: measured[field.name] for field in fields(Audit)})


def _merge(values: Sequence[Any]) -> Any:
    """Return numbers by their mean, intervals by the widest, everything else by the first."""
    first = values[0]
    if isinstance(first, Mapping):
        return _merge_mappings(values)
    if is_interval(first):
        return _widest(values)
    if is_number(first) and all(map(is_number, values)):
        # whole numbers, such as counts, are the same in every seed
        kinds = set(map(type, values))
        return float(np.mean(values)) if float in kinds else first
    return first


def _merge_mappings(mappings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge key by key what all have; a curve is that of the first."""
    merged = {}
    for key, value in mappings[0].items():
        if key == "roc":
            merged[key] = value
        elif all(key in mapping for mapping in mappings):
            merged[key] = _merge([mapping[key] for mapping in mappings])
    return merged


def _widest(intervals: Sequence[Sequence[float]]) -> list[float]:
    lows, highs = zip(*intervals, strict=True)
    return [min(lows), max(highs)]
