"""One line of a preflight: what was looked at, what was found, and what to do where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fedgraft.common.errors import Refused


class State(StrEnum):
    """What became of a check."""

    OK = "ok"
    WRONG = "wrong"
    # not asked for, or an earlier one failed that it needs
    SKIPPED = "skipped"


_MARKS = {State.OK: "✓", State.WRONG: "✗", State.SKIPPED: "–"}
_COLOURS = {State.OK: "green", State.WRONG: "bold red", State.SKIPPED: "dim"}


@dataclass(frozen=True)
class Finding:
    """What one check found.

        ok("TLS", "TLSv1.3, certificate good for 80 days")
        wrong("TCP", "port 9092 refused", "the coordinator's server is not running")

    Attributes:
        what: such as "TLS".
        detail: in a few words; nothing of single records.
        remedy: what to do; "" unless wrong.
    """

    what: str
    state: State
    detail: str
    remedy: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether something must be done."""
        return self.state is State.WRONG

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "what": self.what,
            "state": str(self.state),
            "found": self.detail,
            "remedy": self.remedy,
        }


def ok(what: str, detail: str) -> Finding:
    """Return that it is as it must be."""
    return Finding(what, State.OK, detail)


def wrong(what: str, detail: str, remedy: str) -> Finding:
    """Return that it is not as it must be."""
    return Finding(what, State.WRONG, detail, remedy)


def skipped(what: str, why: str) -> Finding:
    """Return that it was not looked at."""
    return Finding(what, State.SKIPPED, why)


def clause_in_words(refusal: Refused) -> str:
    """Return a policy's refusal for a list of its clauses, where `policy:` goes without saying."""
    return refusal.reason.removeprefix("policy: ")


def print_findings(findings: Sequence[Finding]) -> None:
    """Print them, each with its mark, and the remedy under each that is wrong."""
    # a tenth of a second
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        style = "dim" if finding.state is State.SKIPPED else ""
        detail = Text(finding.detail, style=style)
        if finding.remedy:
            detail.append(f"\n→ {finding.remedy}", style="yellow")
        mark = Text(_MARKS[finding.state], style=_COLOURS[finding.state])
        table.add_row(mark, finding.what, detail)
    Console(highlight=False).print(table)
