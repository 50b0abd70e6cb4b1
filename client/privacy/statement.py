"""What an officer files: ε of each data set in a ledger, by plan, as JSON and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from fedgraft.client.privacy.ledger import Book, Ledger, Line
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


def statement(
    ledger: Ledger,
    *,
    delta: float | None = None,
    accountant: Accountant = "prv",
    ceilings: Ceilings = NO_CEILINGS,
) -> dict[str, Any]:
    """Everything an officer needs to know, as JSON values.

    Args:
        delta: δ at which ε is stated; default the ceiling's, else the smallest of the plans'.

    Returns:
        `head` is what to file: `ledger.verify` tells later if what is stated here was changed or
        cut off. ε that is infinite is null. Where `problems` is not empty the figures are not to be
        relied on.
    """
    problems = ledger.verify()
    book = ledger.book()
    delta = delta or ceilings.delta or min((line.delta for line in book.lines), default=1e-5)
    return {
        "schema": 1,
        "ledger": ledger.path.name,
        "made": _day(datetime.now(UTC).timestamp()),
        "head": str(book.head),
        "problems": problems,
        "data_sets": [
            _data_set(book, known.number, delta, accountant, ceilings)
            for known in book.data
            if any(line.data in known.overlaps for line in book.lines)
        ],
        "not_covered": list(NOT_COVERED),
    }


def by_plan(
    lines: Iterable[Line], delta: float, accountant: Accountant = "prv"
) -> list[dict[str, Any]]:
    """What each plan spent, in the order of their first reservation. ε of plans do not add up to
    the total.
    """
    plans: dict[str, list[Line]] = {}
    for line in lines:
        plans.setdefault(line.plan, []).append(line)
    return [
        {
            "plan": plan,
            "rounds": len({line.round for line in own}),
            "steps": sum(line.steps for line in own if line.settled),
            "reserved_steps": sum(line.steps for line in own if not line.settled),
            "epsilon": _number(bound([line.row for line in own], delta, accountant).epsilon),
            "history": [list(line.row) for line in own],
            "first": _day(own[0].time),
            "last": _day(own[-1].time),
        }
        for plan, own in plans.items()
    ]


def markdown(stated: dict[str, Any]) -> str:
    """The statement as a document."""
    lines = [
        "# Privacy statement",
        "",
        f"Ledger `{stated['ledger']}`, {stated['made']}. Head to file: `{stated['head']}`.",
        "",
    ]
    if stated["problems"]:
        lines += ["**The ledger does not verify; do not rely on these figures:**", ""]
        lines += [f"- {problem}" for problem in stated["problems"]] + [""]
    if not stated["data_sets"]:
        lines += ["Nothing was ever run on any data.", ""]
    for data in stated["data_sets"]:
        lines += [
            f"## Data set `{data['fingerprint'][:19]}…`, {data['records']} records",
            "",
            data["sentence"],
        ]
        if data["left"] is not None:
            left = math.floor(data["left"] * 1e4) / 1e4
            lines.append(f"Ceiling {data['ceiling']:g}; {left:.4f} is left.")
        if data["shares_records_with"]:
            others = ", ".join(f"`{other[:19]}…`" for other in data["shares_records_with"])
            lines.append(f"Its records are also in {others}; what was run there is counted here.")
        lines += [
            "",
            "| plan | rounds | steps | reserved, not settled | ε | from | to |",
            "|---|---|---|---|---|---|---|",
        ]
        for plan in data["plans"]:
            spent = shown(math.inf if plan["epsilon"] is None else plan["epsilon"])
            lines.append(
                f"| `{plan['plan'][:19]}…` | {plan['rounds']} | {plan['steps']} |"
                f" {plan['reserved_steps']} | {spent} | {plan['first']} | {plan['last']} |"
            )
        lines += [
            "",
            "The plans' ε do not add up: the total is composed from all their steps together.",
            "",
        ]
    lines += ["## Not covered by ε", ""] + [f"- {thing}" for thing in stated["not_covered"]]
    return "\n".join(lines) + "\n"


def _data_set(
    book: Book, number: int, delta: float, accountant: Accountant, ceilings: Ceilings
) -> dict[str, Any]:
    known = next(known for known in book.data if known.number == number)
    lines: Sequence[Line] = book.of(known.fingerprint)
    rows = [line.row for line in lines]
    total = bound(rows, delta, accountant)
    settled = bound([line.row for line in lines if line.settled], delta, accountant)
    left = None if ceilings.total is None else max(0.0, ceilings.total - total.epsilon)
    return {
        "fingerprint": known.fingerprint,
        "records": known.records,
        "unit": lines[0].unit,
        "neighbours": NEIGHBOURS[lines[0].unit],
        "sampling": "Poisson",
        "delta": delta,
        "accountant": total.accountant,
        "epsilon": _number(total.epsilon),
        "epsilon_settled": _number(settled.epsilon),
        "ceiling": ceilings.total,
        "left": left,
        "shares_records_with": [
            other.fingerprint
            for other in book.data
            if other.number in known.overlaps and other is not known
        ],
        "sentence": sentence(rows, delta, unit=lines[0].unit, accountant=accountant, found=total),
        "plans": by_plan(lines, delta, accountant),
    }


def _number(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
