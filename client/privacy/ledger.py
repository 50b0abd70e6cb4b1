"""The hospital's privacy ledger: what was ever spent on its data, reserved before training, settled
after.

    reserved = ledger.reserve(data, unit=…, plan=…, round_=…, steps=…, …)    # Refused: nothing was
    spent … train … ledger.settle(reserved, steps)                  # or never, after a crash: all
    of it stays counted

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
import math
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedgraft.client.data.data_set import Records
from fedgraft.client.privacy.spending import Ceilings
from fedgraft.client.store.chain import Chain, Entry, Head, Transaction, differs
from fedgraft.common.errors import Code, Refused, UserError
from fedgraft.common.privacy.accounting import Accountant, Bound, Row, bound, shown

_TABLES = """
CREATE TABLE record (digest BLOB NOT NULL, data INTEGER NOT NULL, PRIMARY KEY (digest, data)) STRICT, WITHOUT ROWID;
CREATE INDEX record_of ON record (data)
"""

log = logging.getLogger("fedgraft.ledger")


@dataclass(frozen=True)
class DataSet:
    """Records by their SHA-256, each once, sorted."""

    records: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def of(cls, records: Records) -> DataSet:
        """All records of the task, training and test: a later split may train on either.

        A table's rows count as the file has them, with all columns: a plan that asks for others
        reads the same patients.
        """
        digests = records.source.identities or records.source.digests
        return cls.from_digests(
            digests[row] for rows in records.splits.values() for row in rows.tolist()
        )

    @classmethod
    def from_digests(cls, digests: Iterable[bytes]) -> DataSet:
        """From records' digests in any order. Raises `UserError` if there are none."""
        unique = tuple(sorted(set(digests)))
        if not unique:
            raise UserError(
                "a data set without records has no ledger", remedy="check the node's data"
            )
        return cls(unique)

    @property
    def fingerprint(self) -> str:
        """ "sha256:…" over the sorted digests."""
        return _fingerprint(self.records)


@dataclass(frozen=True)
class Line:
    """One reservation and what became of it.

    Attributes:
        number: its entry in the ledger.
        data: number of its data set's entry.
        round: from 1.
        purpose: "training", or what else was released with noise.
        reserved: steps that it reserved.
        steps: steps that count: what was taken if settled, else all that were reserved.
        delta: the plan's δ.
        time: Unix time of the reservation, seconds.
    """

    number: int
    data: int
    unit: str
    plan: str
    round: int
    purpose: str
    noise_multiplier: float
    sample_rate: float
    reserved: int
    steps: int
    settled: bool
    delta: float
    time: float

    @property
    def row(self) -> Row:
        """As the accountant counts it."""
        return (self.noise_multiplier, self.sample_rate, self.steps)


@dataclass(frozen=True)
class Known:
    """A data set that the ledger knows: its entry, its size, and the entries of those it shares
    records with.
    """

    number: int
    fingerprint: str
    records: int
    overlaps: frozenset[int]  # its own number among them
    time: float


@dataclass(frozen=True)
class Reservation:
    """Leave to take `steps` steps. Only who holds it can settle it: the token is not in the
    ledger.
    """

    number: int
    steps: int
    token: str = field(repr=False)


@dataclass(frozen=True)
class Book:
    """The ledger's contents at one moment, and what does not verify in it."""

    lines: tuple[Line, ...]
    data: tuple[Known, ...]
    head: Head
    problems: tuple[str, ...]

    def known(self, fingerprint: str) -> Known | None:
        """The data set of this fingerprint, if anything was ever reserved on it."""
        return next((known for known in self.data if known.fingerprint == fingerprint), None)

    def of(self, fingerprint: str, plan: str | None = None) -> tuple[Line, ...]:
        """Everything on data that shares a record with this data set; of one plan, if given."""
        known = self.known(fingerprint)
        shared = known.overlaps if known else frozenset()
        return tuple(
            line for line in self.lines if line.data in shared and plan in (None, line.plan)
        )


class Ledger:
    """A node's ledger.

    Args:
        path: the SQLite file; it is made with the first reservation.
        anchor: where the head is kept a second time; default beside it.
    """

    def __init__(self, path: Path, *, anchor: Path | None = None) -> None:
        self._chain = Chain(path, anchor=anchor, tables=_TABLES)
        self.path = path

    def reserve(
        self,
        data: DataSet,
        *,
        unit: str,
        plan: str,
        round_: int,
        noise_multiplier: float,
        sample_rate: float,
        steps: int,
        delta: float,
        accountant: Accountant = "prv",
        ceilings: Ceilings = Ceilings(),
        again: bool = False,
        purpose: str = "training",
    ) -> Reservation:
        """Count these steps as spent, if they may be; durable when this returns. Call it before the
        first gradient.

        Args:
            unit: whose presence is hidden, "example" or "patient". Data belongs to the unit it was
                first used under: ε of different units cannot be composed.
            plan: the plan's hash.
            delta: the plan's δ.
            accountant: who counts; where RDP's bound is within the ceilings, which is quick, PRV is
                not asked.
            again: count a round that was reserved before once more instead of refusing it.
            purpose: what the noise protects, where one round releases several things.

        Raises:
            Refused: a ceiling would be passed, the round was reserved before, the data was used
                under another unit, or the ledger does not verify. Nothing was spent.
            UserError: a number out of its range.
        """
        if steps < 1 or not math.isfinite(noise_multiplier):
            what = f"a reservation of {steps} steps with noise multiplier {noise_multiplier}"
            raise UserError(what, remedy="reserve one step at least, with finite noise")
        row: Row = (noise_multiplier, sample_rate, steps)
        bound(
            [row], delta, "rdp"
        )  # checks the numbers, and imports Opacus before others have to wait
        with self._chain.writing() as writing:
            number = _register(writing, data)
            book = _book(writing.entries, writing.head)
            before = book.of(data.fingerprint)
            if any(line.unit != unit for line in before):
                raise Refused(
                    Code.BUDGET,
                    f"privacy: this data has a history for the unit {before[0].unit}, with which"
                    f" one for the unit {unit} cannot be composed",
                )
            same = [
                line
                for line in before
                if (line.plan, line.round, line.purpose) == (plan, round_, purpose)
            ]
            if same and not again:
                raise Refused(
                    Code.REPLAY,
                    f"privacy: round {round_} of this plan was"
                    f" {'run' if same[-1].settled else 'begun'} here before; nothing is spent on it"
                    " again",
                )
            run = [line.row for line in before if line.plan == plan]
            _must_stay("run", [*run, row], delta, ceilings.run, accountant)
            total_delta = delta if ceilings.delta is None else ceilings.delta
            _must_stay(
                "total",
                [*(line.row for line in before), row],
                total_delta,
                ceilings.total,
                accountant,
            )
            token = secrets.token_hex(16)
            entry = writing.append(
                "reserve",
                {
                    "data": number,
                    "unit": unit,
                    "plan": plan,
                    "round": round_,
                    "purpose": purpose,
                    "noise_multiplier": float(noise_multiplier),
                    "sample_rate": float(sample_rate),
                    "steps": int(steps),
                    "delta": float(delta),
                    "token": _sha256(token.encode()),
                },
            )
        return Reservation(entry.number, int(steps), token)

    def settle(self, reservation: Reservation, steps: int | None = None) -> None:
        """Record the steps that were really taken; before this, or without it, all that were
        reserved count.

        Fewer count only here, by the process that reserved and trained (it alone has the token),
        and once.

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
            entry = next(
                (
                    e
                    for e in writing.entries
                    if (e.kind, e.number) == ("reserve", reservation.number)
                ),
                None,
            )
            if entry is None or entry.body["token"] != _sha256(reservation.token.encode()):
                raise Refused(
                    Code.BUDGET, f"privacy: no reservation {reservation.number} of this process"
                )
            if any(
                e.kind == "settle" and e.body["reserve"] == entry.number for e in writing.entries
            ):
                raise Refused(
                    Code.BUDGET, f"privacy: reservation {reservation.number} is settled already"
                )
            writing.append("settle", {"reserve": entry.number, "steps": taken})
        if taken > reservation.steps:
            raise Refused(
                Code.BUDGET,
                f"privacy: {taken} steps were taken and {reservation.steps} reserved; nothing is"
                " sent",
            )

    def book(self) -> Book:
        """Everything in the ledger, and whether its chain and anchor are whole."""
        with self._chain.reading() as (_, entries, problems):
            head = _head(entries)
        try:
            return _book(entries, head, problems)
        except (KeyError, TypeError):
            return Book((), (), head, (*problems, "entries lack what they must say"))

    def history(self, data: DataSet) -> tuple[Row, ...]:
        """Every row that counts for this data set, outstanding reservations with all their
        steps.
        """
        return tuple(line.row for line in self._of(data))

    def spent(self, data: DataSet, delta: float, accountant: Accountant = "prv") -> Bound:
        """ε of everything that ever touched these records, reservations included."""
        return bound(self.history(data), delta, accountant)

    def left(
        self, data: DataSet, ceilings: Ceilings, delta: float, accountant: Accountant = "prv"
    ) -> float:
        """ε between what was spent and the ceiling on the total; infinite where there is none.

        What a further run may cost is not this difference, since ε does not add up:
        `accounting.noise_for` with this ledger's history as `earlier` finds it.
        """
        if ceilings.total is None:
            return float("inf")
        spent = self.spent(data, delta if ceilings.delta is None else ceilings.delta, accountant)
        return max(0.0, ceilings.total - spent.epsilon)

    def verify(self, filed: Head | None = None) -> list[str]:
        """Every sign that entries or records were changed, removed, reordered or cut off; empty:
        none.

        Args:
            filed: the head in a statement that was filed earlier, kept where this node cannot
                write.
        """
        with self._chain.reading() as (connection, entries, problems):
            found = [*problems, *([] if filed is None else differs(entries, filed))]
            try:
                found += _records_differ(connection, entries) + _contradictions(entries)
            except (KeyError, TypeError, AttributeError):
                found.append("entries lack what they must say")
        return list(dict.fromkeys(found))

    def _of(self, data: DataSet) -> list[Line]:
        """Lines on data that shares a record with this one, which need not be in the ledger
        itself.
        """
        with self._chain.reading() as (connection, entries, problems):
            if problems:
                raise Refused(Code.BUDGET, f"the privacy ledger does not verify: {problems[0]}")
            shared = _sharing(connection, data.records)
        return [line for line in _book(entries, _head(entries)).lines if line.data in shared]


def _must_stay(
    which: str, history: Sequence[Row], delta: float, ceiling: float | None, accountant: Accountant
) -> None:
    """Refuse a history whose ε is above the ceiling. The reason that a server sees has no number of
    this node's.
    """
    if ceiling is None or bound(history, delta, "rdp").epsilon <= ceiling:
        return
    found = bound(history, delta, accountant)
    if found.epsilon > ceiling:
        log.warning(
            "refused: ε of the %s would be %s, ceiling %g at δ %g",
            which,
            shown(found.epsilon),
            ceiling,
            delta,
        )
        whole = {"run": "this plan's run", "total": "all that was run on this data"}[which]
        raise Refused(
            Code.POLICY,
            f"privacy: ε of {whole} would pass the ceiling of {ceiling:g} at δ = {delta:g}",
        )


def _register(writing: Transaction, data: DataSet) -> int:
    """Number of this data set's entry; a new one is entered with those that it shares records
    with.
    """
    for entry in writing.entries:
        if entry.kind == "data" and entry.body["fingerprint"] == data.fingerprint:
            return entry.number
    shared = _sharing(writing.connection, data.records)
    entry = writing.append(
        "data",
        {"fingerprint": data.fingerprint, "records": len(data.records), "overlaps": sorted(shared)},
    )
    writing.connection.executemany(
        "INSERT INTO record VALUES (?, ?)", ((digest, entry.number) for digest in data.records)
    )
    return entry.number


def _sharing(connection: sqlite3.Connection, records: Sequence[bytes]) -> set[int]:
    """Entries of the data sets that have one of these records."""
    found: set[int] = set()
    for start in range(0, len(records), 500):
        some = records[start : start + 500]
        marks = ",".join("?" * len(some))
        found |= {
            data
            for (data,) in connection.execute(
                f"SELECT data FROM record WHERE digest IN ({marks})", some
            )
        }
    return found


def _book(entries: Sequence[Entry], head: Head, problems: Sequence[str] = ()) -> Book:
    settled = {e.body["reserve"]: e.body["steps"] for e in entries if e.kind == "settle"}
    lines = tuple(
        Line(
            number=e.number,
            data=e.body["data"],
            unit=e.body["unit"],
            plan=e.body["plan"],
            round=e.body["round"],
            purpose=e.body["purpose"],
            noise_multiplier=e.body["noise_multiplier"],
            sample_rate=e.body["sample_rate"],
            reserved=e.body["steps"],
            steps=settled.get(e.number, e.body["steps"]),
            settled=e.number in settled,
            delta=e.body["delta"],
            time=e.time,
        )
        for e in entries
        if e.kind == "reserve"
    )
    sets = [e for e in entries if e.kind == "data"]
    known = tuple(
        Known(
            number=e.number,
            fingerprint=e.body["fingerprint"],
            records=e.body["records"],
            overlaps=frozenset(  # a later data set names the earlier ones; sharing goes both ways
                {
                    e.number,
                    *e.body["overlaps"],
                    *(o.number for o in sets if e.number in o.body["overlaps"]),
                }
            ),
            time=e.time,
        )
        for e in sets
    )
    return Book(lines, known, head, tuple(problems))


def _records_differ(connection: sqlite3.Connection, entries: Sequence[Entry]) -> list[str]:
    """Whether the records kept for each data set are still those of its fingerprint."""
    found = []
    numbers = {e.number for e in entries if e.kind == "data"}
    if not entries:
        return []
    for (number,) in connection.execute("SELECT DISTINCT data FROM record ORDER BY data"):
        if number not in numbers:
            found.append(f"records of a data set {number} that has no entry")
    for entry in entries:
        if entry.kind != "data":
            continue
        rows = connection.execute(
            "SELECT digest FROM record WHERE data = ? ORDER BY digest", (entry.number,)
        )
        if _fingerprint([digest for (digest,) in rows]) != entry.body["fingerprint"]:
            found.append(f"records of the data set in entry {entry.number} were changed or removed")
    return found


def _contradictions(entries: Sequence[Entry]) -> list[str]:
    """What this program would never have written, though the chain may be whole."""
    found = []
    open_: dict[int, int] = {}
    sets: set[int] = set()
    for entry in entries:
        if entry.kind == "data":
            sets.add(entry.number)
        elif entry.kind == "reserve":
            open_[entry.number] = entry.body["steps"]
            if entry.body["data"] not in sets:
                found.append(f"entry {entry.number} reserves on data that has no entry")
        elif entry.kind == "settle":
            if open_.pop(entry.body["reserve"], None) is None:
                found.append(
                    f"entry {entry.number} settles what is not reserved, or settled already"
                )
        else:
            found.append(f"entry {entry.number} is of an unknown kind, {entry.kind}")
    return found


def _head(entries: Sequence[Entry]) -> Head:
    return Head(len(entries), entries[-1].hash if entries else "0" * 64)


def _fingerprint(digests: Sequence[bytes]) -> str:
    return f"sha256:{_sha256(b''.join(digests))}"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
