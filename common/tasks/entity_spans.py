"""Entities as data state them: where in a text each begins and ends, and of which type it is.

A cell holds spans of characters, `12:18:NAME|30:35:DATE` (from 0, the end exclusive; `none` where
there is none), or IOB2 tags, one for each word between blanks: `O O B-NAME I-NAME O`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fedgraft.common.errors import UserError
from fedgraft.common.tasks.labels import BETWEEN

NOTHING = ("none", "-")
OUTSIDE = "O"
SPAN = re.compile(r"(\d+):(\d+):(.+)")
WORD = re.compile(r"\S+")
# of a text or a cell that is shown in a message: texts are records, and no message quotes them
MOST_SHOWN = 40


@dataclass(frozen=True, order=True)
class Entity:
    """One entity of a text.

        Entity(12, 18, 0)

    Attributes:
        start, end: characters, from 0; the end is not part of it.
        type: number of its type.
    """

    start: int
    end: int
    type: int


def read_entities(cell: str, text: str, names: Sequence[str], where: str) -> list[Entity]:
    """Return the entities of a text in their order.

    Args:
        cell: what the data say of them, in one of the two forms.
        names: of the types, as the data have them.
        where: file and line, for messages.

    Raises:
        UserError: a cell in neither form, a type that is none of the plan's, a span that is not in
            the text, spans that overlap, or other tags than words.
    """
    numbers = {name: number for number, name in enumerate(names)}
    stated = cell.strip()
    if stated.lower() in NOTHING:
        return []
    parts = [part.strip() for part in stated.split(BETWEEN)]
    if SPAN.fullmatch(parts[0]):
        return _read_spans(parts, text, numbers, where)
    return _read_tags(stated.split(), text, numbers, where)


def write_entities(entities: Sequence[Entity], names: Sequence[str]) -> str:
    """Return the opposite of `read_entities`, as spans."""
    spans = [f"{each.start}:{each.end}:{names[each.type]}" for each in entities]
    return BETWEEN.join(spans) or NOTHING[0]


# ── spans ─────────────────────────────────────────────────────────────────────────────────────────
def _read_spans(
    parts: Sequence[str], text: str, numbers: Mapping[str, int], where: str
) -> list[Entity]:
    entities: list[Entity] = []
    for part in parts:
        match = SPAN.fullmatch(part)
        if match is None:
            what = f"{part[:MOST_SHOWN]!r} is no span"
            raise UserError(what, where=where, remedy="write START:END:TYPE, such as 12:18:NAME")
        start, end = int(match[1]), int(match[2])
        type_ = _find_type(match[3], numbers, where)
        if start >= end:
            what = f"the span {part[:MOST_SHOWN]} is empty"
            remedy = "the end is the first character behind the entity: 12:18 are six characters"
            raise UserError(what, where=where, remedy=remedy)
        if end > len(text):
            what = f"the span {part[:MOST_SHOWN]} is beyond the text, of {len(text)} characters"
            remedy = "count characters, not bytes, from 0, in the text as it lies in the table"
            raise UserError(what, where=where, remedy=remedy)
        entities.append(Entity(start, end, type_))
    entities.sort()
    for before, after in pairwise(entities):
        if after.start < before.end:
            what = f"the spans from {before.start} and from {after.start} overlap"
            remedy = "keep one of them: a character is of one entity at most"
            raise UserError(what, where=where, remedy=remedy)
    return entities


# ── tags ──────────────────────────────────────────────────────────────────────────────────────────
def _read_tags(
    tags: Sequence[str], text: str, numbers: Mapping[str, int], where: str
) -> list[Entity]:
    words = [match.span() for match in WORD.finditer(text)]
    parted = [_part_tag(tag, numbers, where) for tag in tags]
    if len(tags) != len(words):
        what = f"{len(tags)} tags, and the text has {len(words)} words between blanks"
        raise UserError(what, where=where, remedy="write a tag for each, or spans: 12:18:NAME")
    entities: list[Entity] = []
    goes_on = -1
    for (start, end), (kind, type_) in zip(words, parted, strict=True):
        if kind == "I" and type_ == goes_on:
            entities[-1] = Entity(entities[-1].start, end, type_)
        elif kind != OUTSIDE:
            # an I- that follows nothing of its type begins an entity, as many files have it
            entities.append(Entity(start, end, type_))
        goes_on = type_
    return entities


def _part_tag(tag: str, numbers: Mapping[str, int], where: str) -> tuple[str, int]:
    """Return "O", "B" or "I", and the number of the type; −1 for "O"."""
    if tag == OUTSIDE:
        return OUTSIDE, -1
    kind, dash, name = tag.partition("-")
    if kind not in ("B", "I") or not dash:
        what = f"{tag[:MOST_SHOWN]!r} is neither a span nor a tag"
        remedy = "write spans, 12:18:NAME|30:35:DATE or none; or tags, O O B-NAME I-NAME O"
        raise UserError(what, where=where, remedy=remedy)
    return kind, _find_type(name, numbers, where)


def _find_type(name: str, numbers: Mapping[str, int], where: str) -> int:
    if name in numbers:
        return numbers[name]
    what = f"{name[:MOST_SHOWN]!r} is none of the plan's types"
    remedy = f"known are {', '.join(numbers)}; see task.classes and task.labels"
    raise UserError(what, where=where, remedy=remedy)
