"""Sums without noise: exact, and solved by ridge regression."""

from __future__ import annotations

from flwr.app import RecordDict

from fedgraft.common.model.solve_head import closed_form_of, rounding_of, solve_head, sums_products
from fedgraft.common.result import ClosedFormFacts
from fedgraft.common.statistics.gram_sums import GramSums, zero_sums
from fedgraft.common.statistics.predictive_variance import describe_variance
from fedgraft.common.wire.layout import BadUpdate
from fedgraft.common.wire.sums_record import ExpectedSums, read_sums_record
from fedgraft.server.rounds import Round
from fedgraft.server.sums.counted import Counted
from fedgraft.server.sums.solution import Solution, check_head


class ExactSums:
    """The sums of one round without noise.

    Attributes:
        total: of all nodes that counted.
    """

    def __init__(self, round_: Round) -> None:
        self._round = round_
        self._closed = closed_form_of(round_.plan)
        self._rounding = rounding_of(round_.plan)
        self.total: GramSums = zero_sums(
            round_.head_features,
            self._closed.columns(round_.plan.task),
            products=sums_products(round_.plan),
        )

    def read(self, content: RecordDict, offered: int) -> Counted:
        """Return a node's sums, checked. Raise `BadUpdate` where they may not count.

        Args:
            offered: how many records the node said it has.
        """
        expected = ExpectedSums(
            features=self._round.head_features,
            targets=self._closed.columns(self._round.plan.task),
            bits=self._rounding.bits,
            round=self._round.number,
            digest=self._round.layout.digest,
            records=offered * self._round.places,
            products=sums_products(self._round.plan),
        )
        sums, seconds = read_sums_record(content, expected)
        try:
            self._closed.check(sums, self._round.plan.task)
        except ValueError as error:
            raise BadUpdate(str(error)) from None
        if self.total.records + sums.records > self._rounding.most_records:
            raise BadUpdate("with it there are more records than sums of 64 bits hold")
        return Counted(sums, sums.records, seconds)

    def solve(self) -> Solution:
        """Return the head, and how it was solved. Raise `RunFailed` for one that no node takes."""
        plan = self._round.plan
        solved = solve_head(self.total, plan, self._round.head)
        check_head(solved.tensors)
        variance = None
        facts = ClosedFormFacts(records=self.total.records, features=len(self.total.total))
        if solved.solution is None:
            return Solution(solved.tensors, facts)
        if plan.train.closed_form.variance:
            variance = describe_variance(solved.solution, self._closed.unit(plan.task))
        facts = facts.but(
            ridge=solved.solution.ridge,
            log_evidence=solved.solution.evidence,
            leverage=solved.solution.leverage,
        )
        return Solution(solved.tensors, facts, variance)
