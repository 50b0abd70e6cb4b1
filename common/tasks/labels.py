"""Labels as data state them, whatever file they stand in."""

from __future__ import annotations

from collections.abc import Sequence

Label = int | str
# labels in one message
MOST_SHOWN = 12
# between the parts of a label that has several
BETWEEN = "|"


def plain_label(value: object) -> Label:
    """Return a label as data states it: whole numbers (`1`, `1.0`, `"1"`) as int, else as text."""
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return text
    if number.is_integer():
        return int(number)
    return text


def join_labels(columns: Sequence[Sequence[str]]) -> list[Label]:
    """Return the label of each row of some columns: of one its cell, of several all cells with `|`
    between them.
    """
    if len(columns) == 1:
        return [plain_label(cell) for cell in columns[0]]
    rows = zip(*columns, strict=True)
    return [BETWEEN.join(cell.strip() for cell in row) for row in rows]


def list_labels(values: Sequence[Label]) -> str:
    """Return a few distinct labels, for a message."""
    distinct = sorted(set(values), key=_numbers_first)
    listed = ", ".join(map(str, distinct[:MOST_SHOWN]))
    if len(distinct) > MOST_SHOWN:
        return f"{listed}, …"
    return listed


def _numbers_first(label: Label) -> tuple[bool, Label]:
    return isinstance(label, str), label
