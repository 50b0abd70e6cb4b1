"""What came back in a round: updates that may be combined, and what is written down of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import RecordDict

from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.result import Refusal, RoundTraffic
from fedgraft.common.wire.update import AdapterUpdate
from fedgraft.server.exchange import Replies
from fedgraft.server.intake.admit import admit
from fedgraft.server.intake.incoming import Terms
from fedgraft.server.rounds import Round


@dataclass
class Answers:
    """The replies of one round, read and checked.

    Attributes:
        updates: of the nodes whose update may be combined.
        lines: one of metrics.jsonl for each node of the cohort.
        spent: what nodes say they spent of the privacy budget so far.
        rounding: the largest part of an update that its encoding rounded away.
        traffic: the round's bytes.
        refused: those that were left out.
    """

    traffic: RoundTraffic
    updates: dict[str, AdapterUpdate] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    spent: dict[str, Spent] = field(default_factory=dict)
    rounding: float = 0.0
    refused: list[Refusal] = field(default_factory=list)


class UpdateIntake:
    """The updates of one round as they arrive: each is checked at once.

    Of a reply only what is combined stays in memory: sums of metrics take more than a small
    adapter.

        intake = UpdateIntake(round_, roster.examples)
        answers = intake.close(train(grid, roster, round_, intake))

    Args:
        offered: the weight that each node said it would have, before the first round.
    """

    def __init__(self, round_: Round, offered: Mapping[str, int]) -> None:
        self._round = round_
        self._offered = offered
        self._updates: dict[str, AdapterUpdate] = {}
        self._measured: dict[str, dict[str, Any]] = {}

    def read(self, name: str, content: RecordDict) -> None:
        """Check a node's reply. Raise `BadUpdate` where it may not be combined."""
        update = admit(content, Terms(self._round, self._offered[name]))
        self._measured[name] = _measured(update)
        self._updates[name] = replace(update, received=None)

    def pass_over(self, name: str) -> None:
        """Do nothing: nobody waits for this node."""

    def close(self, replies: Replies) -> Answers:
        """Return what may be combined, in the order of the cohort, and a line for each node."""
        answers = new_answers(self._round, replies)
        for name in self._round.cohort:
            sizes = {"down": replies.down.get(name, 0), "up": replies.up.get(name, 0)}
            line: dict[str, Any] = {"round": self._round.number, "node": name, "bytes": sizes}
            if name in self._updates:
                line |= self._measured[name]
                _keep(name, self._updates[name], answers)
            else:
                line["refused"] = replies.refused.get(name, "")
            answers.lines.append(line)
        answers.refused = refusals_of(replies, self._round.number)
        return answers


def new_answers(round_: Round, replies: Replies) -> Answers:
    """Return a round's answers before any is read: its traffic."""
    traffic = RoundTraffic(
        round=round_.number,
        nodes=len(round_.cohort),
        down=sum(replies.down.values()),
        up=sum(replies.up.values()),
    )
    return Answers(traffic)


def refusals_of(replies: Replies, number: int, phase: str = "") -> list[Refusal]:
    """Return who was left out of a round and why, by name; the phase is put before the reason."""
    refused = []
    for name, reason in sorted(replies.refused.items()):
        refused.append(Refusal(node=name, round=number, reason=f"{phase}{reason}"))
    return refused


def _keep(name: str, update: AdapterUpdate, answers: Answers) -> None:
    answers.rounding = max(answers.rounding, update.rounding)
    if update.spent is not None:
        answers.spent[name] = update.spent
    answers.updates[name] = update


def _measured(update: AdapterUpdate) -> dict[str, Any]:
    """Return what an update tells for its node's line.

    `received` is of the model as the node received it: the shared model after the round before.
    """
    train = {
        "examples": update.examples,
        "steps": update.steps,
        "loss": update.train_loss,
        "seconds": update.seconds,
    }
    received = None
    if update.received is not None:
        received = update.received.summary()
    return {"train": train, "received": received}
