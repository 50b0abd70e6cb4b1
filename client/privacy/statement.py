"""What an officer files: ε of each data set in a ledger, by plan, as JSON and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fedgraft.client.privacy.ledger import Ledger
from fedgraft.client.privacy.ledger_book import Book, KnownData
from fedgraft.client.privacy.ledger_holds import Hold
from fedgraft.client.privacy.ledger_line import Line
from fedgraft.client.privacy.spending import NO_CEILINGS, Ceilings
from fedgraft.common.privacy.accounting import NEIGHBOURS, Accountant, bound, shown
from fedgraft.common.privacy.accounting import statement as sentence

NOT_COVERED = (
    "that this node took part, when, and how long a round took",
    "what is agreed on in the open: class names, the plan, the backbone",
    (
        "anything that was computed on these records outside this ledger, and records that are the"
        " same but were stored anew with other bytes (converted, resized, corrected)"
    ),
)
_NO_DELTA = 1e-5
_DIGITS_SHOWN = 19


@dataclass(frozen=True)
class _Counting:
    """How ε is counted: δ, by whom, and the most that may be spent."""

    delta: float
    accountant: Accountant
    ceilings: Ceilings = NO_CEILINGS

    def epsilon(self, lines: Iterable[Line]) -> float:
        return bound([line.row for line in lines], self.delta, self.accountant).epsilon


# ── as JSON ───────────────────────────────────────────────────────────────────────────────────────
def statement(
    ledger: Ledger,
    *,
    delta: float | None = None,
    accountant: Accountant = "prv",
    ceilings: Ceilings = NO_CEILINGS,
) -> dict[str, Any]:
    """Return everything an officer needs to know, as JSON values.

    `head` is what to file: `ledger.verify` tells later if what is stated here was changed or cut
    off. ε that is infinite is null. Where `problems` is not empty the figures are not to be relied
    on.

    Args:
        delta: δ at which ε is stated; default the ceiling's, else the smallest of the plans'.
    """
    problems = ledger.verify()
    book = ledger.book()
    smallest = min((line.delta for line in book.lines), default=_NO_DELTA)
    counting = _Counting(delta or ceilings.delta or smallest, accountant, ceilings)
    now = datetime.now(UTC).timestamp()
    data_sets = []
    for known in book.data:
        lines = book.lines_on(known.fingerprint)
        if lines:
            held = book.open_holds(known.related, lines[0].unit, now)
            data_sets.append(_data_set(book, known, lines, held, counting))
    held = []
    for hold in book.holds:
        if hold.is_open(book.lines, now):
            held.append(_held(book, hold, counting))
    return {
        "schema": 1,
        "ledger": ledger.path.name,
        "made": _minute(now),
        "head": str(book.head),
        "problems": problems,
        "data_sets": data_sets,
        "held": held,
        "not_covered": list(NOT_COVERED),
    }


def _data_set(
    book: Book,
    known: KnownData,
    lines: Sequence[Line],
    held: Sequence[Hold],
    counting: _Counting,
) -> dict[str, Any]:
    unit = lines[0].unit
    delta = counting.delta
    rows = [line.row for line in lines]
    total = bound(rows, delta, counting.accountant)
    settled = counting.epsilon(line for line in lines if line.settled)
    ceiling = counting.ceilings.total
    left = None
    if ceiling is not None:
        ahead = [row for hold in held for row in hold.left(book.lines)]
        left = max(0.0, ceiling - bound([*rows, *ahead], delta, counting.accountant).epsilon)
    shares = []
    for other in book.data:
        if other.number in known.overlaps and other is not known:
            shares.append(other.fingerprint)
    words = sentence(rows, delta, unit=unit, accountant=counting.accountant, counted=total)
    return {
        "fingerprint": known.fingerprint,
        "records": known.records,
        "unit": unit,
        "neighbours": NEIGHBOURS[unit],
        "sampling": "Poisson",
        "delta": delta,
        "accountant": total.accountant,
        "epsilon": _finite(total.epsilon),
        "epsilon_settled": _finite(settled),
        "ceiling": ceiling,
        "left": left,
        "shares_records_with": shares,
        "trusted": sorted({code for line in lines for code in line.trusted}),
        "sentence": words,
        "plans": _by_plan(lines, counting),
    }


def _by_plan(lines: Sequence[Line], counting: _Counting) -> list[dict[str, Any]]:
    """Return what each plan spent, in the order of their first reservation.

    ε of plans do not add up to the total.
    """
    plans: dict[str, list[Line]] = {}
    for line in lines:
        plans.setdefault(line.plan, []).append(line)
    return [_plan(plan, own, counting) for plan, own in plans.items()]


def _plan(plan: str, lines: Sequence[Line], counting: _Counting) -> dict[str, Any]:
    rounds = {line.round for line in lines}
    settled = sum(line.steps for line in lines if line.settled)
    reserved = sum(line.steps for line in lines if not line.settled)
    return {
        "plan": plan,
        "rounds": len(rounds),
        "steps": settled,
        "reserved_steps": reserved,
        "epsilon": _finite(counting.epsilon(lines)),
        "history": [list(line.row) for line in lines],
        "first": _minute(lines[0].time),
        "last": _minute(lines[-1].time),
    }


def _held(book: Book, hold: Hold, counting: _Counting) -> dict[str, Any]:
    """Return what is held for a run."""
    rows = hold.left(book.lines)
    return {
        "plan": hold.plan,
        "steps": sum(steps for _, _, steps in rows),
        "epsilon": _finite(bound(rows, counting.delta, counting.accountant).epsilon),
        "until": _minute(hold.until(book.lines)),
    }


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _minute(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


# ── as Markdown ───────────────────────────────────────────────────────────────────────────────────
_TABLE = (
    "| plan | rounds | steps | reserved, not settled | ε | from | to |",
    "|---|---|---|---|---|---|---|",
)
_TRUSTED = (
    "These figures hold if code that is not fedgraft's, which ran on these records, is what it was"
    " approved as: extension"
)
_HELD = (
    "No other run is admitted to it meanwhile;"
    " `fedgraft node ledger node.yaml --release PLAN` gives it back.",
    "",
    "| plan | steps | ε | until, if nothing of it comes |",
    "|---|---|---|---|",
)


def markdown(stated: Mapping[str, Any]) -> str:
    """Return the statement as a document."""
    lines = [
        "# Privacy statement",
        "",
        f"Ledger `{stated['ledger']}`, {stated['made']}. Head to file: `{stated['head']}`.",
        "",
    ]
    if stated["problems"]:
        lines += ["**The ledger does not verify; do not rely on these figures:**", ""]
        lines += _list(stated["problems"])
        lines.append("")
    if not stated["data_sets"]:
        lines += ["Nothing was ever run on any data.", ""]
    for data in stated["data_sets"]:
        lines += _data_set_lines(data)
    if stated["held"]:
        lines += ["## Held for runs that are under way", "", *_HELD]
        lines += [*map(_held_row, stated["held"]), ""]
    lines += ["## Not covered by ε", "", *_list(stated["not_covered"])]
    return "\n".join(lines) + "\n"


def _data_set_lines(data: Mapping[str, Any]) -> list[str]:
    name = _short(data["fingerprint"])
    lines = [f"## Data set {name}, {data['records']} records", "", data["sentence"]]
    if data["left"] is not None:
        # rounded down: what is printed is really left
        left = math.floor(data["left"] * 1e4) / 1e4
        lines.append(f"Ceiling {data['ceiling']:g}; {left:.4f} is neither spent nor held.")
    if data["shares_records_with"]:
        others = ", ".join(map(_short, data["shares_records_with"]))
        lines.append(f"Its records are also in {others}; what was run there is counted here.")
    for code in data["trusted"]:
        lines += ["", f"{_TRUSTED} `{code}`."]
    lines += ["", *_TABLE, *map(_plan_row, data["plans"])]
    not_a_sum = "The plans' ε do not add up: the total is composed from all their steps together."
    return [*lines, "", not_a_sum, ""]


def _plan_row(plan: Mapping[str, Any]) -> str:
    epsilon = math.inf if plan["epsilon"] is None else plan["epsilon"]
    cells = (
        _short(plan["plan"]),
        plan["rounds"],
        plan["steps"],
        plan["reserved_steps"],
        shown(epsilon),
        plan["first"],
        plan["last"],
    )
    return f"| {' | '.join(map(str, cells))} |"


def _held_row(held: Mapping[str, Any]) -> str:
    epsilon = math.inf if held["epsilon"] is None else held["epsilon"]
    cells = (_short(held["plan"]), held["steps"], shown(epsilon), held["until"])
    return f"| {' | '.join(map(str, cells))} |"


def _short(fingerprint: str) -> str:
    return f"`{fingerprint[:_DIGITS_SHOWN]}…`"


def _list(items: Iterable[str]) -> list[str]:
    return [f"- {item}" for item in items]
