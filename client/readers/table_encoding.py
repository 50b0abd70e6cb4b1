"""A table's cells as a network's inputs.

A column of numbers is one input. A column of categories, which the plan names with their values so
that all hospitals encode alike, becomes one input a value: 1 for the row's own, 0 for the others,
and missing in all of them where the cell is empty or holds a value that the plan does not know. Too
many unknown ones are an error: they are another spelling, not missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedgraft.client.readers.reader import TableColumns
from fedgraft.client.readers.source import Label
from fedgraft.client.readers.table_cells import MOST_TOLD, Cells
from fedgraft.common.errors import UserError
from fedgraft.common.tasks.labels import plain_label

_LARGEST = float(np.finfo(np.float32).max)


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


def encode(cells: Cells, columns: TableColumns) -> Encoded:
    """Return the feature columns as inputs, in the plan's order."""
    categories = dict(columns.categories)
    widths = [len(categories.get(name, ())) or 1 for name in columns.features]
    values = np.full((len(cells.rows), sum(widths)), np.nan, np.float32)
    encoded = Encoded(values, [], {})
    begin = 0
    for name, width in zip(columns.features, widths, strict=True):
        inputs = values[:, begin : begin + width]
        if name in categories:
            _encode_categories(cells, name, categories[name], inputs, encoded)
        else:
            _encode_numbers(cells, name, inputs[:, 0], encoded)
            if len(encoded.mistakes) >= MOST_TOLD:
                return encoded
        begin += width
    # −0 becomes 0: equal rows get equal digests
    values += 0.0
    return encoded


def _encode_categories(
    cells: Cells, name: str, known: Sequence[Label], inputs: np.ndarray, encoded: Encoded
) -> None:
    """Fill in the inputs `(n, values)` of one column of categories."""
    numbers = {plain_label(value): number for number, value in enumerate(known)}
    given = 0
    strange: list[str] = []
    for row, cell in enumerate(cells.column(name)):
        if not cell:
            continue
        given += 1
        number = numbers.get(plain_label(cell))
        if number is None:
            strange.append(cell)
        else:
            inputs[row] = 0
            inputs[row, number] = 1
    if strange:
        encoded.unknown[name] = len(strange)
    if 2 * len(strange) > given:
        encoded.mistakes.append(_misspelt(cells.where, name, strange, known, given))


def _encode_numbers(cells: Cells, name: str, inputs: np.ndarray, encoded: Encoded) -> None:
    """Fill in the inputs `(n,)` of one column of numbers, as far as mistakes are told."""
    for row, cell in enumerate(cells.column(name)):
        try:
            inputs[row] = _number(cell)
        except ValueError as error:
            mistake = mistaken_cell(cells, row, name, str(error))
            encoded.mistakes.append(mistake)
            if len(encoded.mistakes) >= MOST_TOLD:
                return


def _number(text: str) -> float:
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
        raise ValueError(f"{text[:40]!r} is infinite, or too large for a 32-bit number")
    return value


def mistaken_cell(cells: Cells, row: int, column: str, what: str) -> UserError:
    """Return what to say of one cell."""
    remedy = (
        "write a number such as 1.5, or leave the cell empty where the value is missing; "
        "if the column holds words, the plan must name them: task.categories"
    )
    where = f"{cells.where}:{cells.lines[row]}"
    return UserError(f"column {column!r}: {what}", where=where, remedy=remedy)


def _misspelt(
    where: str, column: str, strange: Sequence[str], known: Sequence[Label], given: int
) -> UserError:
    examples = [repr(cell[:20]) for cell in sorted(set(strange))[:5]]
    what = (
        f"column {column!r}: {len(strange)} of {given} values are not among the plan's categories,"
        f" such as {', '.join(examples)}"
    )
    remedy = (
        f"write them as the plan does: {', '.join(map(str, known[:12]))}; "
        "or ask the coordinator to add them to task.categories"
    )
    return UserError(what, where=where, remedy=remedy)
