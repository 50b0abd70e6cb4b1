"""The hospital's privacy ledger: what was ever spent on its data, held for a run that is admitted,
reserved before training, settled after.

    ledger.hold(data, run, seconds=259_200)      # Refused: it does not fit beside the others
    reserved = ledger.reserve(data, spending)    # Refused: nothing was spent
    … train …
    ledger.settle(reserved, steps)               # or never, after a crash: all of it stays counted

A reservation is a row (noise multiplier, sample rate, steps) for one data set, unit, plan and
round. Before it is written, the accountant composes it with everything that was ever run or
reserved on data that shares a record with this one; past a ceiling it is refused, while no other
process can write. A data set that shares one record with an earlier one inherits the earlier one's
whole history; a record's own history is part of that. So does one that shares a patient, unless
both are counted by example; and where the unit is the node, everything in the ledger counts.

An anchored hash chain (`client/store/chain.py`) holds it all; see docs/adr/0004-privacy-ledger.md
for what a copy, a restored backup and a changed data set mean.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedgraft.client.privacy.ledger_book import Book, find_contradictions, read_book
from fedgraft.client.privacy.ledger_holds import Hold, rounds_done, rows_left
from fedgraft.client.privacy.ledger_line import Line
from fedgraft.client.privacy.ledger_records import (
    TABLES,
    DataSet,
    Related,
    find_changed_records,
    find_related,
    register,
)
from fedgraft.client.privacy.spending import NO_CEILINGS, Ceilings, Spending, WholeRun
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
        durable: whether what is written outlasts a power cut. A hospital's does.
    """

    def __init__(self, path: Path, *, anchor: Path | None = None, durable: bool = True) -> None:
        self._chain = Chain(path, anchor=anchor, tables=TABLES, durable=durable)
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
            related = _related(book, number)
            earlier = book.lines_for(related, spending.unit)
            holds = book.open_holds(related, spending.unit, time.time())
            _check_unit((*earlier, *holds), spending.unit)
            if not again:
                _check_new(earlier, spending)
            _check_ceilings(earlier, holds, spending, ceilings)
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

    # ── a whole run ───────────────────────────────────────────────────────────────────────────────
    def check_run(self, data: DataSet, run: WholeRun, ceilings: Ceilings) -> None:
        """Raise `Refused` unless all of a run fits beside what was spent and what is held for
        others. Nothing is written.
        """
        with self._chain.reading() as (connection, entries, problems):
            _check_verified(problems)
            related = find_related(connection, data)
        _check_run(read_book(entries, head_of(entries)), related, run, ceilings)

    def hold(self, data: DataSet, run: WholeRun, ceilings: Ceilings, *, seconds: float) -> None:
        """Hold all of a run's ε for it, so that no other run is admitted to it meanwhile.

        Where it is held already, nothing is written.

        Args:
            seconds: for which it is held after the run's last reservation.

        Raises:
            Refused: it does not fit beside what was spent and what is held for others, or the
                ledger does not verify.
        """
        with self._chain.writing() as writing:
            number = register(writing, data)
            book = read_book(writing.entries, writing.head)
            related = _related(book, number)
            _check_run(book, related, run, ceilings)
            for held in book.open_holds(related, run.unit, time.time()):
                if held.plan == run.plan:
                    return
            body = {
                "data": number,
                "unit": run.unit,
                "plan": run.plan,
                "held": [part.to_json() for part in run.held],
                "seconds": float(seconds),
            }
            writing.append("hold", body)

    def release(self, plan: str) -> Hold:
        """Give back what is held for a run; what it reserved or spent stays counted.

        Args:
            plan: its hash, or how that begins.

        Raises:
            UserError: nothing is held for it, or for more than one.
            Refused: the ledger does not verify.
        """
        with self._chain.writing() as writing:
            book = read_book(writing.entries, writing.head)
            now = time.time()
            open_ = [hold for hold in book.holds if hold.is_open(book.lines, now)]
            named = [hold for hold in open_ if hold.plan.startswith(plan)]
            if len(named) != 1:
                what = f"ε is held for {len(named)} runs of a plan {plan!r}"
                listed = ", ".join(hold.plan for hold in open_) or "it is held for none"
                raise UserError(what, where=str(self.path), remedy=f"name one of these: {listed}")
            writing.append("release", {"hold": named[0].number})
        return named[0]

    # ── reading ───────────────────────────────────────────────────────────────────────────────────
    def book(self) -> Book:
        """Return everything in the ledger, and whether its chain and anchor are whole."""
        with self._chain.reading() as (_, entries, problems):
            head = head_of(entries)
        try:
            return read_book(entries, head, problems)
        except (KeyError, TypeError):
            return Book((), (), head, (*problems, _LACKING))

    def history(self, data: DataSet, unit: str | None = None) -> tuple[Row, ...]:
        """Return every row that counts for this data set under a unit; None: under any.

        Outstanding reservations count with all their steps. The data set need not be in the ledger
        itself.
        """
        with self._chain.reading() as (connection, entries, problems):
            _check_verified(problems)
            related = find_related(connection, data)
        lines = read_book(entries, head_of(entries)).lines_for(related, unit)
        return tuple(line.row for line in lines)

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
def _check_verified(problems: Sequence[str]) -> None:
    if problems:
        raise Refused(Code.BUDGET, f"the privacy ledger does not verify: {problems[0]}")


def _related(book: Book, number: int) -> Related:
    """Return the data sets whose history is that of a registered one, too."""
    return next(known.related for known in book.data if known.number == number)


def _check_unit(earlier: Sequence[Line | Hold], unit: str) -> None:
    for release in earlier:
        if release.unit != unit:
            raise Refused(
                Code.BUDGET,
                f"privacy: this data has a history for the unit {release.unit}, with which one"
                f" for the unit {unit} cannot be composed",
            )


def _check_run(book: Book, related: Related, run: WholeRun, ceilings: Ceilings) -> None:
    """Raise `Refused` unless all of a run fits beside what was spent and what others hold."""
    earlier = book.lines_for(related, run.unit)
    holds = book.open_holds(related, run.unit, time.time())
    _check_unit((*earlier, *holds), run.unit)
    ahead = tuple(rows_left(run.held, rounds_done(earlier, run.plan)))

    of_run = [line.row for line in earlier if line.plan == run.plan]
    _check_bound(
        "all rounds of this plan", [*of_run, *ahead], ceilings.run, run.delta, run.accountant
    )
    others = [hold for hold in holds if hold.plan != run.plan]
    of_all = [line.row for line in earlier]
    for hold in others:
        of_all += hold.left(earlier)
    what = "all that was run on this data, with this plan"
    if others:
        what = "all that was run on this data and is held for other runs, with this plan"
    delta = run.delta if ceilings.delta is None else ceilings.delta
    _check_bound(what, [*of_all, *ahead], ceilings.total, delta, run.accountant)


def _check_new(earlier: Sequence[Line], spending: Spending) -> None:
    release = (spending.plan, spending.round, spending.purpose)
    same = [line for line in earlier if (line.plan, line.round, line.purpose) == release]
    if not same:
        return
    become = "run" if same[-1].settled else "begun"
    what = f"round {spending.round} of this plan was {become} here before"
    raise Refused(Code.REPLAY, f"privacy: {what}; nothing is spent on it again")


def _check_ceilings(
    earlier: Sequence[Line], holds: Sequence[Hold], spending: Spending, ceilings: Ceilings
) -> None:
    of_run = [line.row for line in earlier if line.plan == spending.plan]
    of_run.append(spending.row)
    _check_bound("this plan's run", of_run, ceilings.run, spending.delta, spending.accountant)

    of_all = [line.row for line in earlier]
    of_all.append(spending.row)
    what = "all that was run on this data"
    for hold in holds:
        # its own run takes this round out of it
        own = hold.plan == spending.plan
        of_all += hold.left(earlier, (spending.purpose, spending.round) if own else None)
        what = "all that was run on this data or is held for a run"
    delta = spending.delta if ceilings.delta is None else ceilings.delta
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
    body: dict[str, object] = {
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
    # ledgers of before have no such key, and those of plans without extensions need none
    if spending.trusted:
        body["trusted"] = list(spending.trusted)
    return body


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
