"""Labels as data state them, whatever file they stand in."""

from __future__ import annotations

from collections.abc import Sequence

Label = int | str
# labels in one message
MOST_SHOWN = 12


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


def list_labels(values: Sequence[Label]) -> str:
    """Return a few distinct labels, for a message."""
    distinct = sorted(set(values), key=_numbers_first)
    listed = ", ".join(map(str, distinct[:MOST_SHOWN]))
    if len(distinct) > MOST_SHOWN:
        return f"{listed}, …"
    return listed


def _numbers_first(label: Label) -> tuple[bool, Label]:
    return isinstance(label, str), label
