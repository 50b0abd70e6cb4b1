"""One line of a preflight: what was looked at, what was found, and what to do where it is wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "wrong", "skipped"]
_MARKS = {"ok": "✓", "wrong": "✗", "skipped": "–"}


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        what: such as "TLS".
        state: "skipped" where it was not asked for, or an earlier one failed that it needs.
        found: in a few words; nothing of single records.
        remedy: what to do; "" unless wrong.
    """

    what: str
    state: State
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def ok(what: str, found: str) -> Finding:
    """As it must be."""
    return Finding(what, "ok", found)


def wrong(what: str, found: str, remedy: str) -> Finding:
    """Not as it must be."""
    return Finding(what, "wrong", found, remedy)


def skipped(what: str, why: str) -> Finding:
    """Not looked at."""
    return Finding(what, "skipped", why)


def table(findings: list[Finding]) -> None:
    """Print them, each with its mark, and the remedy under each that is wrong."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column(no_wrap=True)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    colours = {"ok": "green", "wrong": "bold red", "skipped": "dim"}
    for finding in findings:
        said = Text(finding.found, style="dim" if finding.state == "skipped" else "")
        if finding.remedy:
            said.append(f"\n→ {finding.remedy}", style="yellow")
        shown.add_row(Text(_MARKS[finding.state], style=colours[finding.state]), finding.what, said)
    Console(highlight=False).print(shown)
