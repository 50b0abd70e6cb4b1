"""What came back in a round: updates that may be combined, and what is written down of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.result import Refusal, RoundTraffic
from fedgraft.common.wire.layout import BadUpdate
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


def read_replies(round_: Round, replies: Replies, offered: Mapping[str, int]) -> Answers:
    """Check every reply of a round and return what may be combined.

    Of a reply that was read only what is combined stays in memory: sums of metrics take more than a
    small adapter.

    Args:
        offered: the weight that each node said it would have, before the first round.
    """
    answers = new_answers(round_, replies)
    for name in round_.cohort:
        sizes = {"down": replies.down.get(name, 0), "up": replies.up.get(name, 0)}
        line: dict[str, Any] = {"round": round_.number, "node": name, "bytes": sizes}
        content = replies.contents.pop(name, None)
        if content is not None:
            try:
                update = admit(content, Terms(round_, offered[name]))
            except BadUpdate as error:
                replies.refused[name] = str(error)
            else:
                line |= _measured(update)
                _keep(name, update, answers)
        if name not in answers.updates:
            line["refused"] = replies.refused.get(name, "")
        answers.lines.append(line)
    answers.refused = refusals_of(replies, round_.number)
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
    answers.updates[name] = replace(update, received=None)


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
