"""The last evaluation: the final model is measured at every node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flwr.app import MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.result import FinalMetrics, Metrics, Refusal, Traffic
from fedgraft.common.tasks import TASKS
from fedgraft.common.tasks.task import Sums
from fedgraft.common.wire.metric_records import read_groups, read_sums
from fedgraft.common.wire.spent_record import read_spent
from fedgraft.server.handout import Roster
from fedgraft.server.merged_groups import MergedGroups
from fedgraft.server.read_in_order import Question, ask_in_order
from fedgraft.server.round_replies import refusals_of
from fedgraft.server.rounds import Round


@dataclass(frozen=True)
class Evaluation:
    """What all nodes measured together.

    Attributes:
        final: metrics of each node, of all together, and of groups of people.
        traffic: the bytes of it.
        refused: the nodes that measured nothing, and why.
        lines: one of metrics.jsonl for each node that measured.
        confusion: counts by true class and answer, of each node that measured.
        spent: what nodes say they spent of the privacy budget, these metrics included.
    """

    final: FinalMetrics
    traffic: Traffic
    refused: list[Refusal]
    lines: list[dict[str, Any]]
    confusion: dict[str, list[list[int]]]
    spent: dict[str, Spent]


def evaluate_everywhere(
    grid: Grid, roster: Roster, last: Round, score_bin: int | None = None
) -> Evaluation:
    """Measure a model at every node of the roster and merge what comes back.

    Args:
        last: the model as a round that sends it out.
        score_bin: from which score on the second of two classes is answered; None: from even odds.
    """
    merging = _Merging(last.plan, score_bin)
    replies = ask_in_order(grid, roster, Question("evaluate", last, "evaluate"), merging.add)

    lines = []
    for name, metrics in merging.nodes.items():
        lines.append({"round": last.number, "node": name, "final": metrics})
    refused = refusals_of(replies, last.number, "evaluation: ")
    return Evaluation(
        final=merging.final(),
        traffic=replies.traffic(),
        refused=refused,
        lines=lines,
        confusion=merging.confusion,
        spent=merging.spent,
    )


def chosen(sums: Sums, plan: Plan) -> Metrics:
    """Return the metrics that the plan asks for, and the number of examples behind them."""
    summary = sums.summary()
    return {key: summary[key] for key in (*plan.evaluate.metrics, "examples")}


@dataclass
class _Merging:
    """Sums of metrics as they come in, node by node."""

    plan: Plan
    score_bin: int | None = None
    nodes: dict[str, Metrics] = field(default_factory=dict)
    confusion: dict[str, list[list[int]]] = field(default_factory=dict)
    spent: dict[str, Spent] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = self.plan.evaluate.subgroups
        if self.plan.privacy.mode != "none":
            columns = ()
        self._groups = MergedGroups(columns)
        self._all = TASKS[self.plan.task.question].zero(self.plan.task)

    def add(self, name: str, content: RecordDict) -> None:
        """Take in one node's reply. Raises `BadUpdate`, and nothing of it is taken in."""
        spent, content = _part_spent(content, self.plan)
        record = content.metric_records.get("received", MetricRecord())
        task = self.plan.task
        sums = read_sums(record, task)
        groups = read_groups(content, self._groups.sizes, sums, task)
        self._groups.add({position: self._answer(group) for position, group in groups.items()})
        sums = self._answer(sums)
        self._all = self._all + sums
        self.nodes[name] = chosen(sums, self.plan)
        counts = sums.counts()
        if sums.examples and counts:
            self.confusion[name] = counts
        if spent is not None:
            self.spent[name] = spent

    def _answer(self, sums: Sums) -> Sums:
        """Return the sums with the answers at the operating point."""
        threshold = TASKS[self.plan.task.question].operating_point
        if self.score_bin is None or threshold is None:
            return sums
        return threshold.answer_from(sums, self.score_bin)

    def _list_labels(self) -> dict[str, Metrics]:
        """Return the metrics of each label, where a record has several."""
        question = TASKS[self.plan.task.question]
        if question.parts is None:
            return {}
        names = question.counted(self.plan.task)
        return dict(zip(names, question.parts(self._all), strict=False))

    def final(self) -> FinalMetrics:
        """Return the metrics of all that was taken in."""
        final = FinalMetrics(
            global_=chosen(self._all, self.plan), nodes=self.nodes, labels=self._list_labels()
        )
        if not self.plan.evaluate.subgroups:
            return final
        groups = self._groups.metrics(lambda sums: chosen(sums, self.plan))
        return final.but(subgroups=groups)


def _part_spent(content: RecordDict, plan: Plan) -> tuple[Spent | None, RecordDict]:
    """Return what a node says that it spent with its metrics, if it says so, and the rest of its
    reply. Raises `BadUpdate`.
    """
    if not plan.privacy.at_node or "privacy" not in content.config_records:
        return None, content
    rest = RecordDict({key: record for key, record in content.items() if key != "privacy"})
    return read_spent(content.config_records["privacy"]), rest
