"""Text that somebody else chose, as it may stand in a terminal, in Markdown, in a spreadsheet."""

from __future__ import annotations

import re

# what Markdown would take for something else, and what the HTML in it would
_MARKUP = re.compile(r"([\\`*_{}\[\]#])")
_HTML = {ord(sign): f"&#{ord(sign)};" for sign in "<>&|$~"}
# a spreadsheet takes a cell that begins so for a formula (OWASP, "CSV injection")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_printable(text: str, most: int = 2000) -> str:
    """Return text without line breaks, escape sequences and other signs that move a terminal's
    cursor: each is a question mark.
    """
    return "".join(sign if sign.isprintable() else "?" for sign in text[:most])


def as_markdown(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return _MARKUP.sub(r"\\\1", as_printable(text)).translate(_HTML)


def as_cell(text: str) -> str:
    """Return text that a spreadsheet shows as it is: what begins like a formula, and is no number,
    is led by an apostrophe.
    """
    if not text.startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
