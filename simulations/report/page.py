"""A page as text: HTML that needs nothing else, neither script nor network.

    content = page("a title", [heading("One"), paragraph("Two."), table(["three"], [["4"]])])
    write_page(Path("report.html"), content)

It opens from a disk and prints. Functions that return an element bear the element's name.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fedgraft.common.files.whole_files import write_whole

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
META = (
    "<meta charset=utf-8>"
    "<meta name=viewport content='width=device-width, initial-scale=1'>"
    "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; "
    "style-src 'unsafe-inline'\">"
)


class Card(NamedTuple):
    """A box at the top of a page: a figure, what it means, and whether it is a warning."""

    figure: str
    meaning: str
    warn: bool = False


# ── the document ──────────────────────────────────────────────────────────────────────────────────
def page(title: str, sections: Iterable[str]) -> str:
    """Return the whole document; `sections` are HTML, and empty ones are left out."""
    head = f"{META}<title>{text(title)}</title><style>\n{STYLE}</style>"
    body = "\n".join(filter(None, sections))
    return f"<!doctype html>\n<html lang=en><head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def write_page(path: Path, content: str) -> Path:
    """Write a page in one step; return its path."""
    write_whole(path, content)
    return path


# ── elements, each named after what it returns ────────────────────────────────────────────────────
def text(value: object) -> str:
    """Return anything as text that is safe inside HTML."""
    return html.escape(str(value))


def element(tag: str, inside: str, attributes: str = "") -> str:
    """Return one element around HTML; `attributes` are written as they are."""
    opening = f"{tag} {attributes}" if attributes else tag
    return f"<{opening}>{inside}</{tag}>"


def heading(words: str, level: int = 2) -> str:
    """Return a heading."""
    return element(f"h{level}", text(words))


def paragraph(words: str, kind: str = "") -> str:
    """Return a paragraph of plain text; `kind` is lead or quiet."""
    attributes = f"class={kind}" if kind else ""
    return element("p", text(words), attributes)


def note(words: str, *, warn: bool = False) -> str:
    """Return a sentence that must not be overlooked."""
    return _box("note", warn, text(words))


def bullets(lines: Iterable[str]) -> str:
    """Return a list of plain texts; nothing where it is empty."""
    items = [element("li", text(line)) for line in lines]
    if not items:
        return ""
    return element("ul", "".join(items))


def cards(items: Iterable[Card]) -> str:
    """Return a row of boxes."""
    boxes = "".join(map(_card, items))
    return element("div", boxes, "class=cards")


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    strong: int = -1,
    texts: Sequence[int] = (),
) -> str:
    """Return a table of plain texts.

    Args:
        strong: number of a row that stands out.
        texts: columns that hold words, not numbers.
    """
    first = element("tr", _cells("th", head, texts))
    lines = []
    for number, row in enumerate(rows):
        attributes = "class=strong" if number == strong else ""
        lines.append(element("tr", _cells("td", row, texts), attributes))
    parts = element("thead", first) + element("tbody", "".join(lines))
    return element("div", element("table", parts), "class=wide")


def facts(items: Iterable[tuple[str, str]]) -> str:
    """Return names and what they are; the values are plain text."""
    lines = []
    for name, value in items:
        lines.append(element("dt", text(name)))
        lines.append(element("dd", text(value)))
    return element("dl", "".join(lines))


def details(summary: str, inside: str) -> str:
    """Return what only some readers want, folded up; `inside` is HTML."""
    return element("details", element("summary", text(summary)) + inside)


def listing(words: str) -> str:
    """Return a file's text, as it is."""
    return element("pre", text(words))


def figure(svg: bytes | None, words: str) -> str:
    """Return a picture with the sentence that says what it shows; nothing where there is none."""
    if svg is None:
        return ""
    data = base64.b64encode(svg).decode()
    image = f"<img alt='{text(words)}' src='data:image/svg+xml;base64,{data}'>"
    return element("figure", image + element("figcaption", text(words)))


def _box(kind: str, warn: bool, inside: str) -> str:
    kinds = f"{kind} warn" if warn else kind
    return element("div", inside, f"class='{kinds}'")


def _card(card: Card) -> str:
    figure_ = element("b", text(card.figure))
    meaning = element("span", text(card.meaning))
    return _box("card", card.warn, figure_ + meaning)


def _cells(tag: str, values: Sequence[str], texts: Sequence[int]) -> str:
    cells = []
    for number, value in enumerate(values):
        attributes = "class=text" if number in texts else ""
        cells.append(element(tag, text(value), attributes))
    return "".join(cells)


# ── sentences ─────────────────────────────────────────────────────────────────────────────────────
def listed(words: Sequence[str]) -> str:
    """Return `one, two and three`."""
    *first, last = words
    if not first:
        return last
    return f"{', '.join(first)} and {last}"
