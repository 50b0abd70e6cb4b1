"""What a privacy ledger says: its reservations and data sets, read from its chain's entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedgraft.client.privacy.ledger_holds import Hold, read_holds
from fedgraft.client.privacy.ledger_line import Line, line_of
from fedgraft.client.privacy.ledger_records import Related
from fedgraft.client.store.chain_entry import Entry, Head

# kinds of entries that end another, and of which kind that is
_ENDS = {"settle": "reserve", "release": "hold"}


@dataclass(frozen=True)
class KnownData:
    """A data set that the ledger knows.

    Attributes:
        number: its entry in the ledger.
        records: how many.
        overlaps: entries of the data sets that it shares records with, its own number among them.
        same_patients: entries of the data sets that have records of its patients.
        time: Unix time of the entry, seconds.
    """

    number: int
    fingerprint: str
    records: int
    overlaps: frozenset[int]
    same_patients: frozenset[int]
    time: float

    @property
    def related(self) -> Related:
        """The data sets whose history is this one's, too."""
        return Related(self.overlaps, self.same_patients)


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
    holds: tuple[Hold, ...] = ()

    def find_data(self, fingerprint: str) -> KnownData | None:
        """Return the data set of this fingerprint, if anything was ever reserved on it."""
        for known in self.data:
            if known.fingerprint == fingerprint:
                return known
        return None

    def lines_on(self, fingerprint: str, plan: str | None = None) -> tuple[Line, ...]:
        """Return all that counts for this data set under the unit that it was used for; of one
        plan, if given.
        """
        known = self.find_data(fingerprint)
        if known is None:
            return ()
        own = (line.unit for line in self.lines if line.data == known.number)
        lines = self.lines_for(known.related, next(own, None))
        return tuple(line for line in lines if plan in (None, line.plan))

    def lines_for(self, related: Related, unit: str | None) -> tuple[Line, ...]:
        """Return all that counts for data under a unit; None: whatever may."""
        return tuple(line for line in self.lines if counts(line, related, unit))

    def open_holds(self, related: Related, unit: str | None, now: float) -> tuple[Hold, ...]:
        """Return what is held for runs on this data at a Unix time, seconds."""
        held = [hold for hold in self.holds if counts(hold, related, unit)]
        return tuple(hold for hold in held if hold.is_open(self.lines, now))


def counts(release: Line | Hold, related: Related, unit: str | None) -> bool:
    """Return whether a release may have told of a unit of a data set; None: of any unit.

    Args:
        related: the data sets that have records of this one, or of its patients.
    """
    # everything of a node is one unit
    if "node" in (release.unit, unit) or release.data in related.same_records:
        return True
    # two records of a patient are two examples
    if release.unit == unit == "example":
        return False
    return release.data in related.same_patients


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
            lines.append(line_of(entry, settled.get(entry.number)))
        elif entry.kind == "data":
            data_sets.append(entry)
    known = tuple(_known_data(entry, data_sets) for entry in data_sets)
    return Book(tuple(lines), known, head, tuple(problems), read_holds(entries))


def _known_data(entry: Entry, data_sets: Sequence[Entry]) -> KnownData:
    """Return a data set. A later one names the earlier ones; sharing goes both ways."""
    overlaps = {entry.number, *entry.body["overlaps"]}
    # an earlier release knew no patients
    patients = {entry.number, *entry.body.get("patients", ())}
    for other in data_sets:
        if entry.number in other.body["overlaps"]:
            overlaps.add(other.number)
        if entry.number in other.body.get("patients", ()):
            patients.add(other.number)
    return KnownData(
        number=entry.number,
        fingerprint=entry.body["fingerprint"],
        records=entry.body["records"],
        overlaps=frozenset(overlaps),
        same_patients=frozenset(patients),
        time=entry.time,
    )


def find_contradictions(entries: Sequence[Entry]) -> list[str]:
    """Return what this program would never have written, though the chain may be whole."""
    problems = []
    # what is there and has not ended, by kind
    known: dict[str, set[int]] = {"data": set(), "reserve": set(), "hold": set()}
    for entry in entries:
        name = f"entry {entry.number}"
        if entry.kind in ("reserve", "hold") and entry.body["data"] not in known["data"]:
            problems.append(f"{name} is about data that has no entry")
        if entry.kind in known:
            known[entry.kind].add(entry.number)
        elif entry.kind in _ENDS:
            ended = _ENDS[entry.kind]
            if entry.body[ended] not in known[ended]:
                problems.append(f"{name} ends a {ended} that is not there, or ended already")
            known[ended].discard(entry.body[ended])
        else:
            problems.append(f"{name} is of an unknown kind, {entry.kind}")
    return problems
