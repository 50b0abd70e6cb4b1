"""The sums or histograms of one round as they arrive.

At any time one node's sums and the total are in memory, however many nodes there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flwr.app import RecordDict

from fedgraft.common.errors import RunFailed
from fedgraft.common.plan.phases import purpose_of
from fedgraft.server.exchange import Replies
from fedgraft.server.round_replies import Answers, new_answers, refusals_of
from fedgraft.server.rounds import Round
from fedgraft.server.sums.exact_sums import ExactSums
from fedgraft.server.sums.merged_histograms import MergedHistograms
from fedgraft.server.sums.private_sums import PrivateSums
from fedgraft.server.sums.solution import Solution


class SumIntake:
    """What nodes send in a round of sums or of histograms, added up.

        intake = SumIntake(round_, roster.examples)
        answers = intake.close(train(grid, roster, round_, intake))
        solution = intake.solve()

    Args:
        offered: how many records each node said it has, before the first round.
    """

    def __init__(self, round_: Round, offered: Mapping[str, int]) -> None:
        self._round = round_
        self._offered = offered
        self._purpose = purpose_of(round_.plan.train, round_.number)
        self._sums: ExactSums | PrivateSums | MergedHistograms
        if self._purpose == "histograms":
            self._sums = MergedHistograms(round_)
        elif round_.plan.privacy.at_node:
            self._sums = PrivateSums(round_)
        else:
            self._sums = ExactSums(round_)
        self._lines: dict[str, dict[str, Any]] = {}
        self._spent: dict[str, Any] = {}

    def read(self, name: str, content: RecordDict) -> None:
        """Add a node's sums. Raise `BadUpdate` where they may not count; the total stays then."""
        counted = self._sums.read(content, self._offered[name])
        self._sums.total = self._sums.total + counted.sums
        if counted.spent is not None:
            self._spent[name] = counted.spent
        train = {
            "examples": counted.records,
            "steps": 0,
            "loss": None,
            "seconds": counted.seconds,
        }
        self._lines[name] = {"train": train, "received": None}

    def pass_over(self, name: str) -> None:
        """Do nothing: sums are exact, and added in whatever order they come."""

    def close(self, replies: Replies) -> Answers:
        """Return the round's traffic, its refusals, what was spent, and a line for each node."""
        answers = new_answers(self._round, replies)
        for name in self._round.cohort:
            sizes = {"down": replies.down.get(name, 0), "up": replies.up.get(name, 0)}
            line = {"round": self._round.number, "node": name, "bytes": sizes}
            counted = self._lines.get(name)
            if counted is None:
                counted = {"refused": replies.refused.get(name, "")}
            answers.lines.append(line | counted)
        answers.spent = self._spent
        answers.refused = refusals_of(replies, self._round.number)
        return answers

    def solve(self) -> Solution:
        """Return the adapter that was sent with the head that the sums give, and how it was solved;
        of histograms with the constants that they give.

        Raises:
            RunFailed: fewer nodes counted than the plan needs.
        """
        needed = self._round.plan.aggregate.min_nodes
        if len(self._lines) < needed:
            what = f"{len(self._lines)} nodes sent valid {self._purpose}, {needed} are needed"
            raise RunFailed(f"round {self._round.number}: {what}")
        solution = self._sums.solve()
        return replace(solution, adapter=dict(self._round.sent) | solution.adapter)
