"""A table's cells as a network's inputs.

A column of numbers is one input. A column of categories, which the plan names with their values so
that all hospitals encode alike, becomes one input a value: 1 for the row's own, 0 for the others,
and missing in all of them where the cell is empty. A value that the plan does not know is an error,
unless a person has decided that it is missing; in more than half of a column it is another spelling
whatever they decided.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedgraft.client.readers.reader import TableColumns
from fedgraft.client.readers.source import Label
from fedgraft.client.readers.table_cells import MOST_TOLD, Cells
from fedgraft.common.errors import UserError
from fedgraft.common.plan.reading_section import to_write
from fedgraft.common.tasks.labels import plain_label

# a larger value has no square in 32 bits, and no network can take it
_LARGEST = 1e18
# unknown values in one message, and characters of each
_MOST_VALUES = 8
_LONGEST = 20


@dataclass(frozen=True)
class Encoded:
    """Inputs of a table's rows, and what is wrong with the cells.

    Attributes:
        values: float32 `(n, F)`, NaN where missing.
        mistakes: each with line and column.
        unknown: by column, how many values are not among the plan's categories.
    """

    values: np.ndarray
    mistakes: list[UserError]
    unknown: dict[str, int]


def encode(cells: Cells, columns: TableColumns, *, allow_unknown: bool = False) -> Encoded:
    """Return the feature columns as inputs, in the plan's order.

    Args:
        allow_unknown: whether values that the plan's categories do not name are missing, up to half
            of a column; else each column of them is a mistake.
    """
    categories = dict(columns.categories)
    widths = [len(categories.get(name, ())) or 1 for name in columns.features]
    values = np.full((len(cells.rows), sum(widths)), np.nan, np.float32)
    encoded = Encoded(values, [], {})
    begin = 0
    for name, width in zip(columns.features, widths, strict=True):
        inputs = values[:, begin : begin + width]
        if name in categories:
            strange = _encode_categories(cells, name, categories[name], inputs)
            if strange.values and not (allow_unknown and strange.is_fewer):
                encoded.mistakes.append(_misspelt(cells.where, strange, categories[name]))
            if strange.values:
                encoded.unknown[name] = len(strange.values)
        else:
            _encode_numbers(cells, name, inputs[:, 0], encoded)
            if len(encoded.mistakes) >= MOST_TOLD:
                return encoded
        begin += width
    # −0 becomes 0: equal rows get equal digests
    values += 0.0
    return encoded


@dataclass(frozen=True)
class _Strange:
    """The values of a column that the plan's categories do not name, of how many that are there."""

    column: str
    values: list[str]
    given: int

    @property
    def is_fewer(self) -> bool:
        """Whether they are not more than those that the plan names."""
        return 2 * len(self.values) <= self.given


def _encode_categories(
    cells: Cells, name: str, known: Sequence[Label], inputs: np.ndarray
) -> _Strange:
    """Fill in the inputs `(n, values)` of one column of categories."""
    numbers = {plain_label(value): number for number, value in enumerate(known)}
    strange = _Strange(name, [], 0)
    given = 0
    for row, cell in enumerate(cells.column(name)):
        if not cell:
            continue
        given += 1
        number = numbers.get(plain_label(cell))
        if number is None:
            strange.values.append(cell)
        else:
            inputs[row] = 0
            inputs[row, number] = 1
    return replace(strange, given=given)


def _encode_numbers(cells: Cells, name: str, inputs: np.ndarray, encoded: Encoded) -> None:
    """Fill in the inputs `(n,)` of one column of numbers, as far as mistakes are told."""
    for row, cell in enumerate(cells.column(name)):
        try:
            inputs[row] = read_number(cell)
        except ValueError as error:
            mistake = mistaken_cell(cells, row, name, str(error))
            encoded.mistakes.append(mistake)
            if len(encoded.mistakes) >= MOST_TOLD:
                return


def read_number(text: str) -> float:
    """Return a cell's value, NaN where empty. Raise ValueError that says what it is instead."""
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a number") from None
    if "_" in text or math.isnan(value):
        raise ValueError(f"{text[:40]!r} is not a number")
    if abs(value) > _LARGEST:
        raise ValueError(f"{text[:40]!r} is infinite, or larger than anything measured")
    return value


def mistaken_cell(cells: Cells, row: int, column: str, what: str) -> UserError:
    """Return what to say of one cell."""
    remedy = (
        "write a number such as 1.5, or leave the cell empty where the value is missing; "
        "if the column holds words, the plan must name them: task.categories"
    )
    where = f"{cells.where}:{cells.lines[row]}"
    return UserError(f"column {column!r}: {what}", where=where, remedy=remedy)


def _misspelt(where: str, strange: _Strange, known: Sequence[Label]) -> UserError:
    counts = Counter(value[:_LONGEST] for value in strange.values).most_common(_MOST_VALUES)
    listed = ", ".join(f"{value!r} {count:,}" for value, count in counts)
    what = (
        f"column {strange.column!r}: {len(strange.values):,} of {strange.given:,} values are not"
        f" among the plan's categories: {listed}"
    )
    remedy = (
        f"write them as the plan does: {', '.join(map(str, known[:12]))}; "
        "or ask the coordinator to add them to task.categories"
    )
    if strange.is_fewer:
        missing = to_write("unknown_categories", "missing")
        remedy += f"; if they are to count as missing: {missing}"
    return UserError(what, where=where, remedy=remedy)
