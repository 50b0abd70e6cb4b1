"""The shared model on the nodes' validation records, after a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flwr.app import MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.result import Metrics, Refusal, Traffic
from fedgraft.common.tasks import TASKS
from fedgraft.common.tasks.task import Sums
from fedgraft.common.wire.layout import BadUpdate
from fedgraft.common.wire.metric_records import VALIDATION, read_sums
from fedgraft.server.handout import Roster
from fedgraft.server.read_in_order import Question, ask_in_order
from fedgraft.server.round_replies import refusals_of
from fedgraft.server.rounds import Round


@dataclass(frozen=True)
class Measured:
    """What all nodes measured on their validation records after a round.

    Attributes:
        sums: over the records of all nodes together.
        metrics: that they give.
        traffic: the bytes of it.
        refused: the nodes that measured nothing, and why.
        lines: one of metrics.jsonl for each node that measured.
    """

    round: int
    sums: Sums
    metrics: Metrics
    traffic: Traffic
    refused: list[Refusal]
    lines: list[dict[str, Any]]


def measure_validation(
    grid: Grid, roster: Roster, after: Round, *, purpose: str = "validation"
) -> Measured:
    """Measure a model on the validation records of every node of the roster, whoever trained.

    Args:
        after: the model as a round that sends it out; its number is of the round behind it.
        purpose: what it is for, in the messages' group and in words of a refusal.
    """
    number = after.number
    merging = _Merging(number, after.plan.task)
    question = Question("evaluate.validation", after, f"{purpose}-{number}")
    replies = ask_in_order(grid, roster, question, merging.add)
    return Measured(
        round=number,
        sums=merging.together,
        metrics=merging.together.summary(),
        traffic=replies.traffic(),
        refused=refusals_of(replies, number, f"{purpose}: "),
        lines=merging.lines,
    )


class _Merging:
    """Sums over validation records as they come in, node by node."""

    def __init__(self, number: int, task: TaskSection) -> None:
        self._number = number
        self._task = task
        self.together: Sums = TASKS[task.question].zero(task)
        self.lines: list[dict[str, Any]] = []

    def add(self, name: str, content: RecordDict) -> None:
        """Take in one node's reply. Raises `BadUpdate`, and nothing of it is taken in."""
        sums = read_validation(content, self._task)
        self.together = self.together + sums
        line = {"round": self._number, "node": name, "validation": sums.summary()}
        self.lines.append(line)


def read_validation(content: RecordDict, task: TaskSection) -> Sums:
    """Return the sums in a reply. Raise `BadUpdate` for anything else that it holds."""
    if extra := set(content.keys()) - {VALIDATION}:
        raise BadUpdate(f"unexpected records {sorted(map(str, extra))[:5]}")
    return read_sums(content.metric_records.get(VALIDATION, MetricRecord()), task)
