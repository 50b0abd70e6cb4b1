"""The temperature of the shared model: chosen by the validation records of all nodes."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedgraft.common.errors import RunFailed
from fedgraft.common.result import Calibration, Refusal, Traffic
from fedgraft.common.statistics.temperature import NEUTRAL, choose_temperature
from fedgraft.common.wire.temperature_record import TemperatureSums, read_temperatures
from fedgraft.server.handout import Roster
from fedgraft.server.read_in_order import Question, ask_in_order
from fedgraft.server.round_replies import refusals_of
from fedgraft.server.rounds import Round


@dataclass(frozen=True)
class Calibrated:
    """What was chosen, the bytes of it, and the nodes that measured nothing, and why."""

    facts: Calibration
    traffic: Traffic
    refused: list[Refusal]


def calibrate(grid: Grid, roster: Roster, kept: Round) -> Calibrated:
    """Ask every node of the roster for the losses of a model at each temperature, and choose one.

    Args:
        kept: the model as a round that sends it out.

    Raises:
        RunFailed: no node has validation records to choose by.
    """
    together = TemperatureSums.nothing()

    def add(name: str, content: RecordDict) -> None:
        nonlocal together
        together = together + read_temperatures(content)

    question = Question("evaluate.temperature", kept, "temperature")
    replies = ask_in_order(grid, roster, question, add)
    refused = refusals_of(replies, kept.number, "temperature: ")
    if together.examples == 0:
        reasons = [f"\n  {refusal.node}: {refusal.reason}" for refusal in refused]
        what = "no node measured validation records, and by them a temperature is chosen"
        remedy = "write `validation_fraction: 0.2` under evaluate, or leave out calibrate"
        raise RunFailed(f"{what}; {remedy}{''.join(reasons)}")

    means = together.losses / together.examples
    facts = Calibration(
        temperature=choose_temperature(together.losses),
        loss_before=float(means[NEUTRAL]),
        loss=float(means.min()),
        examples=together.examples,
    )
    return Calibrated(facts, replies.traffic(), refused)
