"""Entities as data state them: both forms, and mistakes in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common.errors import UserError
from fedgraft.common.tasks.entity_spans import Entity, read_entities, write_entities

NAMES = ("NAME", "DATE")
TEXT = "Seen by Anna Maria Smith on 3 May."
WHERE = "north.csv:2"


def test_spans_are_read_in_the_order_of_the_text() -> None:
    """A hospital's tool may export them in any order."""
    found = read_entities("28:33:DATE|8:24:NAME", TEXT, NAMES, WHERE)
    assert found == [Entity(8, 24, 0), Entity(28, 33, 1)]
    assert TEXT[8:24] == "Anna Maria Smith"


def test_tags_of_words_are_the_spans_of_their_words() -> None:
    """Both forms of one annotation would else teach two things."""
    found = read_entities("O O B-NAME I-NAME I-NAME O B-DATE I-DATE", TEXT, NAMES, WHERE)
    assert found == [Entity(8, 24, 0), Entity(28, 34, 1)]


def test_an_inside_tag_after_nothing_begins_an_entity() -> None:
    """Files of IOB1 say so; another type ends the entity before."""
    found = read_entities("I-NAME I-DATE B-DATE O", "a b c d", NAMES, WHERE)
    assert found == [Entity(0, 1, 0), Entity(2, 3, 1), Entity(4, 5, 1)]


@pytest.mark.parametrize("cell", ["none", " None ", "-"])
def test_a_text_may_have_none(cell: str) -> None:
    """An empty cell is a missing annotation; this is a stated one."""
    assert read_entities(cell, TEXT, NAMES, WHERE) == []


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("8:99:NAME", "beyond the text, of 34 characters"),
        ("8:24:NAME|20:30:DATE", "overlap"),
        ("8:8:NAME", "empty"),
        ("8:24:PLACE", "none of the plan's types"),
        ("8:24:NAME|later", "no span"),
        ("O O B-NAME", "3 tags, and the text has 8 words"),
        ("O O X-NAME O O O O O", "neither a span nor a tag"),
        ("O O B-DRUG O O O O O", "none of the plan's types"),
    ],
)
def test_mistakes_name_the_line_and_what_is_wrong(cell: str, words: str) -> None:
    """Each would else be trained on as something that nobody annotated."""
    with pytest.raises(UserError, match=words) as mistake:
        read_entities(cell, TEXT, NAMES, WHERE)
    assert mistake.value.where == WHERE
    assert "Smith" not in str(mistake.value)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, 1)), max_size=6))
def test_spans_that_are_written_are_read_again(parts: list[tuple[int, int, int]]) -> None:
    """What `fedgraft predict` writes is what training reads."""
    entities = []
    at = 0
    for gap, length, type_ in parts:
        entities.append(Entity(at + gap, at + gap + length, type_))
        at += gap + length
    text = "x" * at
    assert read_entities(write_entities(entities, NAMES), text, NAMES, WHERE) == entities
