"""What a privacy ledger says: its reservations and data sets, read from its chain's entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedgraft.client.store.chain_entry import Entry, Head
from fedgraft.common.privacy.history import Row


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
class KnownData:
    """A data set that the ledger knows.

    Attributes:
        number: its entry in the ledger.
        records: how many.
        overlaps: entries of the data sets that it shares records with, its own number among them.
        time: Unix time of the entry, seconds.
    """

    number: int
    fingerprint: str
    records: int
    overlaps: frozenset[int]
    time: float


@dataclass(frozen=True)
class Book:
    """The ledger's contents at one moment, and what does not verify in it.

    book = ledger.book()
    spent = [line.row for line in book.lines_on(data.fingerprint)]
    """

    lines: tuple[Line, ...]
    data: tuple[KnownData, ...]
    head: Head
    problems: tuple[str, ...]

    def find_data(self, fingerprint: str) -> KnownData | None:
        """Return the data set of this fingerprint, if anything was ever reserved on it."""
        for known in self.data:
            if known.fingerprint == fingerprint:
                return known
        return None

    def lines_on(self, fingerprint: str, plan: str | None = None) -> tuple[Line, ...]:
        """Return all on data that shares a record with this data set; of one plan, if given."""
        known = self.find_data(fingerprint)
        if known is None:
            return ()
        lines = (line for line in self.lines if line.data in known.overlaps)
        return tuple(line for line in lines if plan in (None, line.plan))


def read_book(entries: Sequence[Entry], head: Head, problems: Sequence[str] = ()) -> Book:
    """Return what the entries say. Raise KeyError or TypeError where one lacks what it must say."""
    settled: dict[int, int] = {}
    lines = []
    data_sets = []
    for entry in entries:
        if entry.kind == "settle":
            settled[entry.body["reserve"]] = entry.body["steps"]
    for entry in entries:
        if entry.kind == "reserve":
            lines.append(_line(entry, settled.get(entry.number)))
        elif entry.kind == "data":
            data_sets.append(entry)
    known = tuple(_known_data(entry, data_sets) for entry in data_sets)
    return Book(tuple(lines), known, head, tuple(problems))


def _line(entry: Entry, taken: int | None) -> Line:
    """Return a reservation; `taken` are the steps it was settled with, None: it was not."""
    body = entry.body
    reserved = body["steps"]
    return Line(
        number=entry.number,
        data=body["data"],
        unit=body["unit"],
        plan=body["plan"],
        round=body["round"],
        purpose=body["purpose"],
        noise_multiplier=body["noise_multiplier"],
        sample_rate=body["sample_rate"],
        reserved=reserved,
        steps=reserved if taken is None else taken,
        settled=taken is not None,
        delta=body["delta"],
        time=entry.time,
    )


def _known_data(entry: Entry, data_sets: Sequence[Entry]) -> KnownData:
    """Return a data set. A later one names the earlier ones; sharing goes both ways."""
    overlaps = {entry.number, *entry.body["overlaps"]}
    for other in data_sets:
        if entry.number in other.body["overlaps"]:
            overlaps.add(other.number)
    return KnownData(
        number=entry.number,
        fingerprint=entry.body["fingerprint"],
        records=entry.body["records"],
        overlaps=frozenset(overlaps),
        time=entry.time,
    )


def find_contradictions(entries: Sequence[Entry]) -> list[str]:
    """Return what this program would never have written, though the chain may be whole."""
    problems = []
    open_: set[int] = set()
    data_sets: set[int] = set()
    for entry in entries:
        name = f"entry {entry.number}"
        if entry.kind == "data":
            data_sets.add(entry.number)
        elif entry.kind == "reserve":
            open_.add(entry.number)
            if entry.body["data"] not in data_sets:
                problems.append(f"{name} reserves on data that has no entry")
        elif entry.kind == "settle":
            if entry.body["reserve"] not in open_:
                problems.append(f"{name} settles what is not reserved, or settled already")
            open_.discard(entry.body["reserve"])
        else:
            problems.append(f"{name} is of an unknown kind, {entry.kind}")
    return problems
