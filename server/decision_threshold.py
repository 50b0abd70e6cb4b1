"""The shared model's operating point: chosen by the validation records of all nodes."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.serverapp import Grid

from fedgraft.common.errors import RunFailed
from fedgraft.common.plan.train_section import OperatingPointSection, TrainSection
from fedgraft.common.result import OperatingFacts, Refusal, Traffic
from fedgraft.common.tasks import TASKS
from fedgraft.server.handout import Roster
from fedgraft.server.rounds import Round
from fedgraft.server.validation import measure_validation


@dataclass(frozen=True)
class ChosenPoint:
    """What was chosen, the bytes of it, and the nodes that measured nothing, and why."""

    facts: OperatingFacts
    traffic: Traffic
    refused: list[Refusal]


def choose_operating_point(grid: Grid, roster: Roster, kept: Round) -> ChosenPoint:
    """Ask every node of the roster for its validation records' scores, and choose a threshold.

    Args:
        kept: the model as it will be shared, as a round that sends it out.

    Raises:
        RunFailed: the validation records of all nodes are not of two classes.
    """
    measured = measure_validation(grid, roster, kept, purpose="operating-point")
    threshold = TASKS[kept.plan.task.question].operating_point
    if threshold is None:
        raise RunFailed("train.operating_point: this question's answers have none")
    try:
        point = threshold.choose(measured.sums, **name_target(kept.plan.train))
    except ValueError as error:
        reasons = [f"\n  {refusal.node}: {refusal.reason}" for refusal in measured.refused]
        remedy = "write `validation_fraction: 0.2` under evaluate, or leave out operating_point"
        raise RunFailed(f"{error}; {remedy}{''.join(reasons)}") from None
    (_, positives) = measured.sums.counts()
    facts = OperatingFacts(
        threshold=point.threshold,
        score_bin=point.score_bin,
        sensitivity=point.sensitivity,
        specificity=point.specificity,
        examples=measured.sums.examples,
        positives=sum(positives),
    )
    return ChosenPoint(facts, measured.traffic, measured.refused)


def name_target(train: TrainSection) -> dict[str, float]:
    """Return what must be reached, by name; nothing: the highest sum of both."""
    section = train.operating_point
    if not isinstance(section, OperatingPointSection):
        return {}
    return section.model_dump(exclude_none=True)
