"""A reservation in a privacy ledger: the noisy steps of one round of one run."""

from __future__ import annotations

from dataclasses import dataclass

from fedgraft.client.store.chain_entry import Entry
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
        trusted: code of others that ran on the records: name and hash.
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
    trusted: tuple[str, ...] = ()

    @property
    def row(self) -> Row:
        """As the accountant counts it."""
        return (self.noise_multiplier, self.sample_rate, self.steps)


def line_of(entry: Entry, taken: int | None) -> Line:
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
        trusted=tuple(body.get("trusted", ())),
    )
