"""The hospital's privacy ledger: what was ever spent on its data, reserved before training, settled
after.

    reserved = ledger.reserve(data, spending)    # Refused: nothing was spent
    … train …
    ledger.settle(reserved, steps)               # or never, after a crash: all of it stays counted

A reservation is a row (noise multiplier, sample rate, steps) for one data set, unit, plan and
round. Before it is written, the accountant composes it with everything that was ever run or
reserved on data that shares a record with this one; past a ceiling it is refused, while no other
process can write. A data set that shares one record with an earlier one inherits the earlier one's
whole history; a record's own history is part of that.

An anchored hash chain (`client/store/chain.py`) holds it all; see docs/adr/0004-privacy-ledger.md
for what a copy, a restored backup and a changed data set mean.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedgraft.client.privacy.ledger_book import Book, Line, find_contradictions, read_book
from fedgraft.client.privacy.ledger_records import (
    TABLES,
    DataSet,
    find_changed_records,
    register,
    sharing,
)
from fedgraft.client.privacy.spending import NO_CEILINGS, Ceilings, Spending
from fedgraft.client.store.chain import Chain
from fedgraft.client.store.chain_entry import Entry, Head, differences, head_of
from fedgraft.common.errors import Code, Refused, UserError
from fedgraft.common.privacy.accounting import Accountant, Bound, bound, shown
from fedgraft.common.privacy.history import Row

log = logging.getLogger("fedgraft.ledger")

_LACKING = "entries lack what they must say"


@dataclass(frozen=True)
class Reservation:
    """Leave to take `steps` steps.

    Only who holds it can settle it: the token is not in the ledger.
    """

    number: int
    steps: int
    token: str = field(repr=False)


class Ledger:
    """A node's ledger.

        ledger = Ledger(node.ledger_path)
        reservation = ledger.reserve(data, spending, ceilings=node.policy.ceilings(plan.privacy))
        ledger.settle(reservation)

    Args:
        path: the SQLite file; it is made with the first reservation.
        anchor: where the head is kept a second time; default beside it.
    """

    def __init__(self, path: Path, *, anchor: Path | None = None) -> None:
        self._chain = Chain(path, anchor=anchor, tables=TABLES)
        self.path = path

    # ── writing ───────────────────────────────────────────────────────────────────────────────────
    def reserve(
        self,
        data: DataSet,
        spending: Spending,
        *,
        ceilings: Ceilings = NO_CEILINGS,
        again: bool = False,
    ) -> Reservation:
        """Count these steps as spent, if they may be; durable when this returns.

        Call it before the first gradient. Data belongs to the unit it was first used under: ε of
        different units cannot be composed.

        Args:
            again: count a round that was reserved before once more instead of refusing it.

        Raises:
            Refused: a ceiling would be passed, the round was reserved before, the data was used
                under another unit, or the ledger does not verify. Nothing was spent.
            UserError: a number out of its range.
        """
        spending.check()
        # checks the numbers, and imports Opacus before others have to wait
        bound([spending.row], spending.delta, "rdp")

        with self._chain.writing() as writing:
            number = register(writing, data)
            book = read_book(writing.entries, writing.head)
            earlier = book.lines_on(data.fingerprint)
            _check_unit(earlier, spending)
            if not again:
                _check_new(earlier, spending)
            _check_ceilings(earlier, spending, ceilings)
            token = secrets.token_hex(16)
            entry = writing.append("reserve", _reserved(number, spending, token))
        return Reservation(entry.number, int(spending.row[2]), token)

    def settle(self, reservation: Reservation, steps: int | None = None) -> None:
        """Record the steps that were really taken.

        Before this, or without it, all that were reserved count. Fewer count only here, by the
        process that reserved and trained (it alone has the token), and once.

        Args:
            steps: steps that added noise to a gradient, empty batches included; None: all.

        Raises:
            Refused: more steps were taken than reserved (they are recorded; send nothing), or this
                reservation is not known or settled already.
        """
        taken = reservation.steps if steps is None else steps
        if taken < 0:
            raise UserError(f"{taken} steps were taken", remedy="count them from 0")
        with self._chain.writing() as writing:
            _check_open(writing.entries, reservation)
            writing.append("settle", {"reserve": reservation.number, "steps": taken})
        if taken > reservation.steps:
            what = f"{taken} steps were taken and {reservation.steps} reserved"
            raise Refused(Code.BUDGET, f"privacy: {what}; nothing is sent")

    # ── reading ───────────────────────────────────────────────────────────────────────────────────
    def book(self) -> Book:
        """Return everything in the ledger, and whether its chain and anchor are whole."""
        with self._chain.reading() as (_, entries, problems):
            head = head_of(entries)
        try:
            return read_book(entries, head, problems)
        except (KeyError, TypeError):
            return Book((), (), head, (*problems, _LACKING))

    def history(self, data: DataSet) -> tuple[Row, ...]:
        """Return every row that counts for this data set.

        Outstanding reservations count with all their steps. The data set need not be in the ledger
        itself.
        """
        with self._chain.reading() as (connection, entries, problems):
            if problems:
                raise Refused(Code.BUDGET, f"the privacy ledger does not verify: {problems[0]}")
            shared = sharing(connection, data.records)
        book = read_book(entries, head_of(entries))
        return tuple(line.row for line in book.lines if line.data in shared)

    def spent(self, data: DataSet, delta: float, accountant: Accountant = "prv") -> Bound:
        """Return ε of everything that ever touched these records, reservations included."""
        return bound(self.history(data), delta, accountant)

    def left(
        self, data: DataSet, ceilings: Ceilings, delta: float, accountant: Accountant = "prv"
    ) -> float:
        """Return ε between what was spent and the ceiling on the total; infinite without one.

        What a further run may cost is not this difference, since ε does not add up:
        `accounting.noise_for` with this ledger's history as `earlier` finds it.
        """
        if ceilings.total is None:
            return float("inf")
        if ceilings.delta is not None:
            delta = ceilings.delta
        spent = self.spent(data, delta, accountant)
        return max(0.0, ceilings.total - spent.epsilon)

    def verify(self, filed: Head | None = None) -> list[str]:
        """Return every sign that entries or records were changed, removed, reordered or cut off.

        Args:
            filed: the head in a statement that was filed earlier, kept where this node cannot
                write.
        """
        with self._chain.reading() as (connection, entries, chain_problems):
            problems = list(chain_problems)
            if filed is not None:
                problems += differences(entries, filed)
            try:
                problems += find_changed_records(connection, entries)
                problems += find_contradictions(entries)
            except (KeyError, TypeError, AttributeError):
                problems.append(_LACKING)
        return list(dict.fromkeys(problems))


# ── what a reservation must not do ────────────────────────────────────────────────────────────────
def _check_unit(earlier: Sequence[Line], spending: Spending) -> None:
    for line in earlier:
        if line.unit != spending.unit:
            raise Refused(
                Code.BUDGET,
                f"privacy: this data has a history for the unit {earlier[0].unit}, with which one"
                f" for the unit {spending.unit} cannot be composed",
            )


def _check_new(earlier: Sequence[Line], spending: Spending) -> None:
    release = (spending.plan, spending.round, spending.purpose)
    same = [line for line in earlier if (line.plan, line.round, line.purpose) == release]
    if not same:
        return
    become = "run" if same[-1].settled else "begun"
    what = f"round {spending.round} of this plan was {become} here before"
    raise Refused(Code.REPLAY, f"privacy: {what}; nothing is spent on it again")


def _check_ceilings(earlier: Sequence[Line], spending: Spending, ceilings: Ceilings) -> None:
    of_run = [line.row for line in earlier if line.plan == spending.plan]
    of_run.append(spending.row)
    _check_bound("this plan's run", of_run, ceilings.run, spending.delta, spending.accountant)

    of_all = [line.row for line in earlier]
    of_all.append(spending.row)
    delta = spending.delta if ceilings.delta is None else ceilings.delta
    what = "all that was run on this data"
    _check_bound(what, of_all, ceilings.total, delta, spending.accountant)


def _check_bound(
    what: str, history: Sequence[Row], ceiling: float | None, delta: float, accountant: Accountant
) -> None:
    """Raise `Refused` for a history whose ε is above the ceiling.

    The reason that a server sees has no number of this node's.
    """
    if ceiling is None or bound(history, delta, "rdp").epsilon <= ceiling:
        return
    epsilon = bound(history, delta, accountant).epsilon
    if epsilon <= ceiling:
        return
    log.warning(
        "refused: ε of %s would be %s, ceiling %g at δ %g", what, shown(epsilon), ceiling, delta
    )
    limit = f"the ceiling of {ceiling:g} at δ = {delta:g}"
    raise Refused(Code.POLICY, f"privacy: ε of {what} would pass {limit}")


def _check_open(entries: Sequence[Entry], reservation: Reservation) -> None:
    """Raise `Refused` unless this very reservation is in the ledger and not settled."""
    number = reservation.number
    token = _sha256(reservation.token)
    known = False
    for entry in entries:
        if entry.kind == "reserve" and entry.number == number:
            known = entry.body["token"] == token
    if not known:
        raise Refused(Code.BUDGET, f"privacy: no reservation {number} of this process")
    for entry in entries:
        if entry.kind == "settle" and entry.body["reserve"] == number:
            raise Refused(Code.BUDGET, f"privacy: reservation {number} is settled already")


def _reserved(data: int, spending: Spending, token: str) -> dict[str, object]:
    """Return the body of a reservation's entry."""
    noise_multiplier, sample_rate, steps = spending.row
    return {
        "data": data,
        "unit": spending.unit,
        "plan": spending.plan,
        "round": spending.round,
        "purpose": spending.purpose,
        "noise_multiplier": float(noise_multiplier),
        "sample_rate": float(sample_rate),
        "steps": int(steps),
        "delta": float(spending.delta),
        "token": _sha256(token),
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
