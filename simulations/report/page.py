"""A page as text: HTML that needs nothing else. No script, no network; it opens from a disk and
prints.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedgraft.common.files.whole_files import write_whole

STYLE = """
:root { --ink: #1c2430; --quiet: #5a6675; --line: #d8dee6; --soft: #f3f6f9; --accent: #0072b2; --warn: #b34700 }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; color: var(--ink);
  background: #fff; max-width: 58rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: break-word }
h1 { font-size: 1.75rem; line-height: 1.2; margin: .5rem 0 .3rem } h3 { font-size: 1rem; margin: 1.4rem 0 .3rem }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line) }
p, ul, ol { max-width: 46rem; margin: .6rem 0 } ul, ol { padding-left: 1.3rem } li { margin: .2rem 0 }
.lead { font-size: 1.1rem } .quiet, figcaption { color: var(--quiet); font-size: .92rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 1.2rem 0 }
.card { background: var(--soft); border-left: 4px solid var(--accent); border-radius: 4px; padding: .7rem .9rem }
.card b { display: block; font-size: 1.35rem; line-height: 1.3 } .card span { font-size: .88rem; color: var(--quiet) }
.card.warn, .note.warn { border-left-color: var(--warn) }
.note { background: var(--soft); border-left: 4px solid var(--accent); border-radius: 4px; padding: .6rem .9rem;
  max-width: 46rem; margin: 1rem 0 }
.wide { overflow-x: auto; margin: .8rem 0 } table { border-collapse: collapse; min-width: 60%;
  font-variant-numeric: tabular-nums; font-size: .94rem }
th, td { text-align: right; padding: .34rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600; border-bottom: 2px solid var(--line); vertical-align: bottom }
td { white-space: nowrap } td.text { white-space: normal; min-width: 6.5rem; overflow-wrap: break-word }
th:first-child, td:first-child { text-align: left; padding-left: 0 } td.text, th.text { text-align: left }
tr.strong td { font-weight: 600 }
figure { margin: 1.2rem 0 } figure img { width: 100%; max-width: 40rem; height: auto; display: block }
code, pre { font: .86rem/1.45 ui-monospace, "Liberation Mono", monospace; overflow-wrap: anywhere }
pre { white-space: pre-wrap; background: var(--soft); padding: .8rem; border-radius: 4px }
summary { cursor: pointer; color: var(--accent); margin: .5rem 0 }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .3rem 1rem; max-width: 52rem }
dt { color: var(--quiet) } dd { margin: 0 }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .5rem }
  body { font-size: 15px } th, td { padding: .3rem .45rem } .cards { grid-template-columns: 1fr 1fr } }
@page { margin: 16mm 15mm }
@media print { body { font-size: 10pt; max-width: none; padding: 0 } h2 { break-after: avoid; margin-top: 1.4rem }
  h3 { break-after: avoid } figure, tr, .card, .note { break-inside: avoid } figure img { max-width: 13cm }
  .card, .note, pre { -webkit-print-color-adjust: exact; print-color-adjust: exact }
  details::details-content { content-visibility: visible; block-size: auto }
  .wide { overflow: visible } table { font-size: 8.5pt } th, td { padding: .25rem .4rem }
  .cards { grid-template-columns: repeat(4, 1fr) } }
"""


def page(title: str, sections: Iterable[str]) -> str:
    """The whole document; `sections` are HTML."""
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">"
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in sections if part)
        + "\n</body></html>\n"
    )


def text(value: object) -> str:
    """Anything as text that is safe inside HTML."""
    return html.escape(str(value))


def heading(words: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{text(words)}</h{level}>"


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph of plain text; `kind` is lead or quiet."""
    return f"<p{f' class={kind}' if kind else ''}>{text(words)}</p>"


def note(words: str, *, warn: bool = False) -> str:
    """A sentence that must not be overlooked."""
    return f"<div class='note{' warn' if warn else ''}'>{text(words)}</div>"


def bullets(lines: Iterable[str]) -> str:
    """A list of plain texts; nothing where it is empty."""
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def cards(items: Iterable[tuple[str, str, bool]]) -> str:
    """A row of boxes: a figure, what it is, and whether it is a warning."""
    return (
        "<div class=cards>"
        + "".join(
            "<div"
            f" class='card{' warn' if warn else ''}'><b>{text(figure)}</b><span>{text(what)}</span></div>"
            for figure, what, warn in items
        )
        + "</div>"
    )


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    strong: int = -1,
    texts: Sequence[int] = (),
) -> str:
    """A table of plain texts.

    Args:
        strong: number of a row that stands out.
        texts: columns that hold words, not numbers.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [" class=text" if number in texts else "" for number in range(len(cells))]
        return "".join(
            f"<{tag}{kind}>{text(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)
        )

    body = "".join(
        f"<tr{' class=strong' if number == strong else ''}>{line(row, 'td')}</tr>"
        for number, row in enumerate(rows)
    )
    return (
        "<div"
        f" class=wide><table><thead><tr>{line(head, 'th')}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(items: Iterable[tuple[str, str]]) -> str:
    """Names and what they are; the values are plain text."""
    return (
        "<dl>"
        + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in items)
        + "</dl>"
    )


def details(summary: str, inside: str) -> str:
    """What only some readers want; `inside` is HTML."""
    return f"<details><summary>{text(summary)}</summary>{inside}</details>"


def listing(words: str) -> str:
    """A file's text, as it is."""
    return f"<pre>{text(words)}</pre>"


def figure(svg: bytes | None, words: str) -> str:
    """A picture with the sentence that says what it shows; nothing where there is none."""
    if svg is None:
        return ""
    data = base64.b64encode(svg).decode()
    return (
        f"<figure><img alt='{text(words)}' src='data:image/svg+xml;base64,{data}'>"
        f"<figcaption>{text(words)}</figcaption></figure>"
    )


def listed(words: Sequence[str]) -> str:
    """`one, two and three`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def write_page(path: Path, content: str) -> Path:
    """Write a page in one step."""
    write_whole(path, content)
    return path
