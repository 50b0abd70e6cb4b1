"""Names that somebody else chose, where people look at them."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common.files.foreign_text import as_cell, as_markdown, as_printable


@given(st.text())
def test_nothing_moves_the_cursor(text: str) -> None:
    """`\\x1b[2J` in a refusal clears the coordinator's screen; a line break forges a line."""
    assert as_printable(text).isprintable()


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_markdown_shows_what_was_written(text: str) -> None:
    """Markup or a picture in a class's name: read by a Markdown renderer, the text is there as it
    was.
    """
    markdown = pytest.importorskip("markdown")
    shown = markdown.markdown(f"x{as_markdown(text)}x")
    inside = shown.removeprefix("<p>").removesuffix("</p>")
    assert html.unescape(inside) == f"x{text}x"


def test_a_cell_is_no_formula() -> None:
    """A spreadsheet that runs what a class is called."""
    assert as_cell("=cmd|' /C calc'!A0") == "'=cmd|' /C calc'!A0"
    assert [as_cell(text) for text in ("-1", "+2.5", "normal", "a=b")] == [
        "-1",
        "+2.5",
        "normal",
        "a=b",
    ]
