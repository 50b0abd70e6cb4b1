"""Histograms of all nodes: exact, and a table's constants are their quantiles."""

from __future__ import annotations

from flwr.app import RecordDict

from fedgraft.common.backbones import family_of
from fedgraft.common.inputs.input_positions import number_inputs
from fedgraft.common.statistics.histograms import TableHistograms, empty_histograms
from fedgraft.common.wire.histogram_record import ExpectedHistograms, read_histogram_record
from fedgraft.server.rounds import Round
from fedgraft.server.sums.counted import Counted
from fedgraft.server.sums.solution import Solution


class MergedHistograms:
    """The histograms of one round.

    Attributes:
        total: of all nodes that counted.
    """

    def __init__(self, round_: Round) -> None:
        self._round = round_
        self._columns = len(number_inputs(round_.plan.task.category_sizes))
        self.total: TableHistograms = empty_histograms(self._columns)

    def read(self, content: RecordDict, offered: int) -> Counted:
        """Return a node's histograms, checked. Raise `BadUpdate` where they may not count.

        Args:
            offered: how many records the node said it has.
        """
        expected = ExpectedHistograms(
            columns=self._columns,
            round=self._round.number,
            digest=self._round.layout.digest,
            records=offered,
        )
        histograms, seconds = read_histogram_record(content, expected)
        return Counted(histograms, histograms.records, seconds)

    def solve(self) -> Solution:
        """Return the constants' tensors; no head is solved yet."""
        plan = self._round.plan
        learnt = family_of(plan.backbone.name).learnt
        if learnt is None:
            raise ValueError(f"{plan.backbone.name} has no constants to learn")
        return Solution(learnt.learn(self.total, plan.train.closed_form.hinges))
