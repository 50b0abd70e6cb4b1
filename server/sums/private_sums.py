"""Sums with each node's own noise, and the head that they give."""

from __future__ import annotations

from flwr.app import RecordDict

from fedgraft.common.model.solve_head import (
    noisy_form_of,
    releases_products,
    solve_noisy_head,
)
from fedgraft.common.result import ClosedFormFacts
from fedgraft.common.statistics.noisy_sums import NoisySums, count_products, zero_noisy
from fedgraft.common.wire.noisy_record import ExpectedNoisy, read_noisy_record
from fedgraft.server.rounds import Round
from fedgraft.server.sums.counted import Counted
from fedgraft.server.sums.solution import Solution, check_head


class PrivateSums:
    """The noisy sums of one round.

    Attributes:
        total: of all nodes that counted.
    """

    def __init__(self, round_: Round) -> None:
        self._round = round_
        plan = round_.plan
        form = noisy_form_of(plan)
        codes, counts = form.shape(plan.task, plan.train.closed_form.shares)
        products = 0
        if releases_products(plan):
            products = count_products(round_.head_features)
        self._expected = ExpectedNoisy(
            features=round_.head_features,
            codes=codes,
            counts=counts,
            round=round_.number,
            digest=round_.layout.digest,
            products=products,
        )
        self.total: NoisySums = zero_noisy(round_.head_features, codes, counts, products)

    def read(self, content: RecordDict, offered: int) -> Counted:
        """Return a node's sums, checked. Raise `BadUpdate` where they may not count."""
        noisy, spent, seconds = read_noisy_record(content, self._expected)
        return Counted(noisy, 1, seconds, spent)

    def solve(self) -> Solution:
        """Return the head, and how it was solved. Raise `RunFailed` for one that no node takes."""
        head = solve_noisy_head(self.total, self._round.plan, self._round.head)
        check_head(head)
        facts = ClosedFormFacts(
            features=len(self.total.sums), noise_deviation=self.total.variance**0.5
        )
        return Solution(head, facts)
