"""A whole run's ε, held for it from its admission on: what other runs may not spend meanwhile.

    an offer → hold of all its rounds → each round's reservation takes its part out of it

A hold ends when its rounds are run, when a person releases it, or some time after the run's last
sign of life here. What was reserved or spent stays counted: only rounds that released nothing
return.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedgraft.client.privacy.ledger_line import Line
from fedgraft.client.store.chain_entry import Entry
from fedgraft.common.privacy.history import Row


@dataclass(frozen=True)
class HeldRounds:
    """Rounds of a run that release the same.

        HeldRounds("training", (1, 2, 3), (1.1, 0.02, 50))

    Attributes:
        purpose: what their noise protects, as in a reservation.
        rounds: numbers, from 1.
        row: noise multiplier, sample rate and steps of one of them.
    """

    purpose: str
    rounds: tuple[int, ...]
    row: Row

    def to_json(self) -> dict[str, Any]:
        """Return it as an entry has it."""
        return {"purpose": self.purpose, "rounds": list(self.rounds), "row": list(self.row)}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> HeldRounds:
        """Return what an entry says."""
        sigma, rate, steps = body["row"]
        return cls(body["purpose"], tuple(body["rounds"]), (sigma, rate, steps))


@dataclass(frozen=True)
class Hold:
    """What is held for one run.

    Attributes:
        number: its entry in the ledger.
        data: number of its data set's entry.
        unit: whose presence the run hides.
        plan: the plan's hash.
        held: all that the run would release.
        seconds: for which it is held after the run's last sign of life.
        time: Unix time of the entry, seconds.
        released: whether a person released it.
    """

    number: int
    data: int
    unit: str
    plan: str
    held: tuple[HeldRounds, ...]
    seconds: float
    time: float
    released: bool

    def until(self, lines: Iterable[Line]) -> float:
        """Return the Unix time at which it ends, if the run gives no sign of life before."""
        own = (line.time for line in lines if line.plan == self.plan)
        return max((self.time, *own)) + self.seconds

    def is_open(self, lines: Sequence[Line], now: float) -> bool:
        """Return whether others must leave it alone at a Unix time."""
        return not self.released and now < self.until(lines) and bool(self.left(lines))

    def left(self, lines: Iterable[Line], but: tuple[str, int] | None = None) -> tuple[Row, ...]:
        """Return the rows of the rounds that were not reserved yet.

        Args:
            but: purpose and round of one that is being reserved.
        """
        done = rounds_done(lines, self.plan)
        if but is not None:
            done.add(but)
        return tuple(rows_left(self.held, done))


def rounds_done(lines: Iterable[Line], plan: str) -> set[tuple[str, int]]:
    """Return purpose and round of all that was reserved of a plan."""
    return {(line.purpose, line.round) for line in lines if line.plan == plan}


def rows_left(held: Iterable[HeldRounds], done: set[tuple[str, int]]) -> Iterator[Row]:
    """Yield what rounds that were not reserved release, a row for those that release the same."""
    for part in held:
        rounds = [number for number in part.rounds if (part.purpose, number) not in done]
        if rounds:
            sigma, rate, steps = part.row
            yield sigma, rate, steps * len(rounds)


def read_holds(entries: Sequence[Entry]) -> tuple[Hold, ...]:
    """Return the holds, of each plan the latest.

    Raise KeyError or TypeError where an entry lacks what it must say.
    """
    released = {entry.body["hold"] for entry in entries if entry.kind == "release"}
    latest: dict[str, Hold] = {}
    for entry in entries:
        if entry.kind != "hold":
            continue
        body = entry.body
        latest[body["plan"]] = Hold(
            number=entry.number,
            data=body["data"],
            unit=body["unit"],
            plan=body["plan"],
            held=tuple(map(HeldRounds.from_json, body["held"])),
            seconds=body["seconds"],
            time=entry.time,
            released=entry.number in released,
        )
    return tuple(latest.values())
