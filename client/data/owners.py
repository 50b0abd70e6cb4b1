"""Whose each record is, and names that are nobody's.

A patient called NA, ANONYMOUS or 0 is everybody. Taken for one person, their records are all on one
side of the split and hidden as one; taken for many, a person may be on both sides. So a person says
which it is: `data.patient_unknown`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence

from fedgraft.client.readers.placeholders import PSEUDONYM_OF_NOBODY, is_placeholder
from fedgraft.client.readers.source import Source
from fedgraft.common.errors import UserError
from fedgraft.common.plan.reading_section import NOBODY, ReadingSection, to_write

# the column of patients where node.yaml names none
PATIENT = "patient"
# 0, 000, -1, 999: a number of their own for many patients, nobody's where too many records have it
_NUMBER = re.compile(r"0+|-1|9{3,}")
# fewer records than these may well be those of one person
_FEWEST = 20
# the name of all who have none, where they are taken for one person
_TOGETHER = "?"


def find_owners(source: Source, column: str | None, reading: ReadingSection) -> list[str] | None:
    """Return whose each row is; None where the data does not say.

    Args:
        column: the column or array that node.yaml names; None: "patient", if there is one.

    Raises:
        UserError: a column that does not say it; records of nobody, or of one who is nearly
            everybody, unless a person has decided whose they are; names of files that look as if
            they said it.
    """
    key = ("owners", column, reading.patient_from, reading.patient_unknown)
    return source.derived(key, lambda: _find(source, column, reading))


def _find(source: Source, column: str | None, reading: ReadingSection) -> list[str] | None:
    names = None
    if reading.patient_from not in (None, NOBODY):
        names = _from_paths(source, re.compile(str(reading.patient_from)))
    if names is None:
        names = _from_column(source, column)
    if names is None:
        if reading.patient_from is None and source.files:
            _check_file_names(source)
        return None

    nobody = _find_nobody(names)
    if reading.patient_unknown == "refuse":
        _check_everybody(source, names, nobody)
        return names
    owners = list(names)
    for row, name in enumerate(names):
        if name in nobody:
            owners[row] = _TOGETHER
            # not the row's number: sorted anew they would be on another side
            if reading.patient_unknown == "apart":
                owners[row] += source.digests[row].hex()[:32]
    return owners


def _from_column(source: Source, column: str | None) -> list[str] | None:
    names = source.owners(column or PATIENT)
    if names is not None or column in (None, PATIENT):
        return names
    if source.column is not None:
        # says which columns there are
        source.column(column)
    raise UserError(
        f"nothing in {column!r}, and data.patient says that it tells whose each record is",
        where=source.where,
        remedy="name the right column or array, or leave data.patient out",
    )


def _from_paths(source: Source, pattern: re.Pattern[str]) -> list[str]:
    """Return what the pattern finds in each file's path below the data's folder."""
    if not source.files:
        what = "data.patient_from is for image files, and these records have none each"
        raise UserError(what, where=source.where, remedy="leave it out, or see data.patient")
    root = source.where if os.path.isdir(source.where) else os.path.dirname(source.where)
    names = []
    for file in source.files:
        path = os.path.relpath(file, root).replace(os.sep, "/")
        found = pattern.search(path)
        names.append("" if found is None else found[min(1, pattern.groups)] or "")
    if not any(names):
        what = f"data.patient_from: {pattern.pattern!r} is in no path"
        raise UserError(what, where=source.where, remedy="correct it, or write none")
    return names


# ── names that are nobody's ───────────────────────────────────────────────────────────────────────
def _find_nobody(names: Sequence[str]) -> set[str]:
    """Return the names that are nobody's, by what they are or by how many records have them."""
    counts = Counter(names)
    nobody = {name for name in counts if is_placeholder(name)}
    named = Counter({name: count for name, count in counts.items() if name not in nobody})
    if not named:
        return nobody
    most = named.most_common(2)
    name, count = most[0]
    second = most[1][1] if len(most) > 1 else 0
    if count > 1 and count > 2 * second and _NUMBER.fullmatch(name):
        nobody.add(name)
    if len(names) >= _FEWEST and 2 * count > len(names):
        nobody.add(name)
    return nobody


def _check_everybody(source: Source, names: Sequence[str], nobody: set[str]) -> None:
    """Raise UserError where there are records of nobody; of those without any name, see
    `choose_splits`.
    """
    counts = Counter(name for name in names if name in nobody and name)
    if not counts:
        return
    shown = [f"{_shown(name)} {count:,}" for name, count in counts.most_common(5)]
    listed = ", ".join(shown)
    raise UserError(
        f"{counts.total():,} of {len(names):,} records are of a patient who is nobody or nearly"
        f" everybody: {listed}",
        where=source.where,
        remedy=(
            "say for every record whose it is; or decide that each is another person's:"
            f" {to_write('patient_unknown', 'apart')}; or that they are one person's: together"
        ),
    )


def _shown(name: str) -> str:
    if name == PSEUDONYM_OF_NOBODY:
        return "ANONYMOUS or the like"
    return repr(name[:12])


# ── names of files that seem to say it ────────────────────────────────────────────────────────────
_TRAILING_NUMBER = re.compile(r"\d+$")
_UP_TO_LAST_DIGIT = re.compile(r".*\d")
# fewer shared beginnings are groups of another kind, such as two scanners
_FEWEST_PEOPLE = 3


def _check_file_names(source: Source) -> None:
    """Raise UserError where most files share the beginning of their name, number and all, with
    others: `person12_1.png`, `person12_2.png`.
    """
    distinct: dict[str, set[bytes | str]] = {}
    contents = source.contents or source.files
    for file, content in zip(source.files, contents, strict=True):
        distinct.setdefault(_beginning(file), set()).add(content)
    distinct.pop("", None)
    shared = {name: len(files) for name, files in distinct.items() if len(files) > 1}
    images = sum(shared.values())
    classes = len(set(source.labels))
    if len(shared) < _FEWEST_PEOPLE or len(shared) <= classes or 2 * images < len(source):
        return
    example = re.sub(r"\d+", "[0-9]+", re.sub(r"([^\w \-])", r"\\\1", min(shared)))
    raise UserError(
        f"{images:,} of {len(source):,} images share the beginning of their file name with others,"
        f" {len(shared):,} beginnings in all, as if it said whose they are; split by file, one"
        " person may be in training and in the tests",
        where=source.where,
        remedy=(
            f"say where the person stands in the path, such as"
            f" {to_write('patient_from', _quote(example))}; or that it says nothing:"
            " data.patient_from: none"
        ),
    )


def _quote(text: str) -> str:
    """Return text as YAML's single quotes hold it, backslashes and all."""
    return "'" + text.replace("'", "''") + "'"


def _beginning(file: str) -> str:
    """Return a name's part that may be a person's: without the last number, up to the last digit
    before it; "" where there is none.
    """
    name, _ = os.path.splitext(os.path.basename(file))
    found = _UP_TO_LAST_DIGIT.match(_TRAILING_NUMBER.sub("", name))
    return "" if found is None else found[0]
