"""The rows of a file as they are dealt to hospitals: whole patients, or a column's values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgraft.client.data.data_set import Records
from fedgraft.common.errors import UserError
from fedgraft.common.plan.simulation_section import SimulationSection

# row numbers of the file, int64, by node
Parts = list[np.ndarray]


@dataclass(frozen=True, eq=False)
class RowPool:
    """The rows that are dealt, and what must stay together.

    Attributes:
        firsts: for each row of the task the first row of its patient in its split.
        values: of the column that says whose each row is, by row; None where no column does.
    """

    records: Records
    firsts: np.ndarray
    values: np.ndarray | None

    @property
    def train(self) -> np.ndarray:
        """The training rows."""
        return self.records.splits["train"]

    @property
    def labels(self) -> np.ndarray:
        """The class of each row, or what stands for it; −1: it is no part of the task."""
        return self.records.strata

    def first_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the first row of each patient among rows of one split."""
        return rows[self.firsts[rows] == rows]

    def complete(self, parts: Parts, rows: np.ndarray) -> Parts:
        """Return for each part all of the rows whose patient's first row is in it."""
        each_once = len(np.unique(self.firsts[rows])) == len(rows)
        if each_once:
            return parts
        # whose part each first row is in, so that the rows are looked through once
        owner = np.full(len(self.firsts), -1)
        for number, part in enumerate(parts):
            owner[part] = number
        owners = owner[self.firsts[rows]]
        order = np.argsort(owners, kind="stable")
        ends = np.searchsorted(owners[order], np.arange(len(parts) + 1))
        return [rows[order[start:end]] for start, end in itertools.pairwise(ends)]

    def owner_of(self, part: np.ndarray) -> Any:
        """Return the value of the column in a part dealt by it."""
        assert self.values is not None
        return self.values[part[0]]


def open_pool(simulation: SimulationSection, records: Records) -> RowPool:
    """Return the rows of a file, with what must stay together. Raise `UserError` where the column
    that deals them does not say whose each row is.
    """
    if simulation.partition.kind == "column":
        values = np.array(_read_column(simulation, records))
        return RowPool(records, np.arange(len(records.labels)), values)
    return RowPool(records, _find_first_rows(records), None)


def _find_first_rows(records: Records) -> np.ndarray:
    """Return for each row of the task the first row of its patient in its split: itself, where
    patients are not known.
    """
    firsts = np.arange(len(records.labels))
    if records.owners is None:
        return firsts
    for rows in records.splits.values():
        seen: dict[str, int] = {}
        for row in rows.tolist():
            firsts[row] = seen.setdefault(records.owners[row], row)
    return firsts


def _read_column(simulation: SimulationSection, records: Records) -> list[str]:
    """Return whose each row is, as text. Raise `UserError` unless every row of the task says it and
    each value has training rows.
    """
    name = simulation.partition.column or ""
    values = records.column(name)
    rows = np.concatenate(list(records.splits.values())).tolist()
    empty = [row for row in rows if not values[row]]
    if empty:
        raise UserError(
            f"column {name!r}: empty in {len(empty)} rows",
            where=records.source.place(empty[0]),
            remedy="say for every row whose it is, or take the row out",
        )

    distinct = {values[row] for row in rows}
    trained = {values[row] for row in records.splits["train"].tolist()}
    untrained = sorted(distinct - trained)
    if untrained:
        what = f"column {name!r}: {untrained[0]!r} has no training examples"
        remedy = "take its rows out, or add to them"
        raise UserError(what, where=records.source.where, remedy=remedy)
    if simulation.nodes not in (None, len(distinct)):
        raise UserError(
            f"{simulation.nodes} nodes, but column {name!r} has {len(distinct)} values",
            where="simulation.nodes",
            remedy="leave it out: each value is a node",
        )
    return values
